"""The web page of detect.py --serve and its server."""
