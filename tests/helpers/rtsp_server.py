"""An RTSP server on loopback: raw BGR frames in by stdin, H.264 out at rtsp://127.0.0.1:PORT/live.

    /usr/bin/python3 tests/helpers/rtsp_server.py PORT WIDTH HEIGHT FPS

Runs by the system's Python, which has GStreamer's bindings; prints "ready" once it listens.
"""
import sys
import threading

LAUNCH = ("( appsrc name=src is-live=true do-timestamp=true format=time block=false max-buffers=2 "
          "leaky-type=downstream caps=video/x-raw,format=BGR,width={1},height={2},framerate={3}/1 ! "
          "videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast "
          "threads=1 key-int-max={3} ! rtph264pay name=pay0 pt=96 config-interval=-1 )")


def main() -> None:
    """Serves until it is killed or its input ends."""
    import gi
    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer
    Gst.init(None)
    port, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    loop, sources = GLib.MainLoop(), []

    def configure(_: object, media: object) -> None:
        source = media.get_element().get_by_name("src")
        sources.append(source)
        media.connect("unprepared", lambda _: sources.remove(source))

    def pump() -> None:
        while data := sys.stdin.buffer.read(3 * width * height):
            for source in list(sources):
                source.emit("push-buffer", Gst.Buffer.new_wrapped(data))
        loop.quit()

    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory.set_launch(LAUNCH.format(*sys.argv[1:]))
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    threading.Thread(target=pump, daemon=True).start()
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
