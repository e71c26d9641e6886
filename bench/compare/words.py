"""What the page of a comparison says, in English and Chinese; figures too, where a font has both."""
from __future__ import annotations

WORDS = {
    "en": {
        "title": "Comparison on {data} at {imgsz} px", "nets": "networks", "runs": "runs", "failed": "failed",
        "seeds": "seeds", "epochs": "epochs each", "minutes": "minutes each", "command": "command",
        "minutes-of": "{minutes:g} of {minutes_of}: epochs by its images a second, validation not counted",
        "budget-epochs": "Equal epochs", "budget-minutes": "Equal wall-clock",
        "conclusion": "conclusion, {budget}",
        "best": "{best} has the highest mean {measure}, {value:.3f}", "stop": ". ",
        "map50": "mAP@0.5", "map50_95": "mAP@0.5:0.95", "f1": "F1 at the best confidence",
        "precision": "Precision at the best F1", "recall": "Recall at the best F1", "box": "Box loss",
        "cls": "Class loss", "obj": "Objectness loss", "dfl": "Distribution focal loss",
        "over-seeds": ": mean and range over seeds", "epoch": "epoch", "at-end": "at the end",
        "front-label": "front: none is faster and as good", "batch-1": "ms an image, batch 1",
        "figures": "figures' language", "no-font": "English: no font for Chinese is installed",
        "alone": "; every other network is more than two standard errors behind",
        "ties": "; within two standard errors of it, so tied: {ties}",
        "light": ". Of these the one of fewest parameters is {net}, the fastest {fast}",
        "one-seed": ". No network has two seeds: the chance of a training is not counted",
        "limits": "{title}: the best within a budget of {cost}",
        "ms": "ms an image", "parameters": "parameters", "training": "training minutes",
        "limit": "budget", "winner": "best", "tied": "tied with it", "of": "networks within", "none": "none",
        "verdicts": "{title}: differences of mean {measure}, each with its standard error (images drawn "
                    "{draws} times, paired, and seeds); a tie within two",
        "versus": "against", "difference": "difference", "error": "standard error", "tie": "tie",
        "yes": "tie", "no": "ahead", "front": "mAP@0.5:0.95 against ms", "front-is": "front",
        "table": "{title}: all networks", "machine": "Machine", "what": "what", "value": "value",
        "against": "{measure} against epochs, {title}",
        "warning": "warning",
        "noisy": "times of a network differ by up to {worst:.0%} (quartiles over median): something else "
                 "kept the cores busy; the same command measures ms again and trains nothing",
        "note": "figures",
        "notes": "each run's best epoch on the validation set, judged alike; +- is the deviation over seeds; "
                 "ms in fp32, batch 1, {threads} thread(s), networks taking turns; budgets and front go by "
                 "ONNX Runtime's ms"},
    "zh": {
        "title": "在 {data} 上的比较，{imgsz} 像素", "nets": "网络数", "runs": "训练数", "failed": "失败",
        "seeds": "种子数", "epochs": "各训练轮数", "minutes": "各训练分钟数", "command": "命令",
        "minutes-of": "{minutes:g}，以 {minutes_of} 计：轮数由其每秒训练图像数得出，不含验证",
        "budget-epochs": "相同轮数", "budget-minutes": "相同时间",
        "conclusion": "结论，{budget}",
        "best": "{best} 的平均 {measure} 最高，为 {value:.3f}", "stop": "。",
        "map50": "mAP@0.5", "map50_95": "mAP@0.5:0.95", "f1": "最佳置信度下的 F1",
        "precision": "最佳 F1 处的精确率", "recall": "最佳 F1 处的召回率", "box": "边框损失",
        "cls": "分类损失", "obj": "目标性损失", "dfl": "分布焦点损失（DFL）",
        "over-seeds": "：各种子的均值与范围", "epoch": "轮", "at-end": "结束时",
        "front-label": "前沿：没有更快且同样好的", "batch-1": "单图毫秒数，批量 1",
        "figures": "图中文字", "no-font": "英文：本机没有安装中文字体",
        "alone": "；其余网络都落后两个标准误以上",
        "ties": "；与其相差不到两个标准误、视为持平的有：{ties}",
        "light": "。其中参数最少的是 {net}，最快的是 {fast}",
        "one-seed": "。没有网络训练过两个种子：训练本身的随机性没有计入",
        "limits": "{title}：{cost}预算内的最优",
        "ms": "单图毫秒数", "parameters": "参数量", "training": "训练分钟数",
        "limit": "预算", "winner": "最优", "tied": "与其持平", "of": "预算内网络数", "none": "无",
        "verdicts": "{title}：平均 {measure} 之差及其标准误"
                    "（图像配对重抽样 {draws} 次，并计入种子间差异）；两个标准误以内为持平",
        "versus": "对比", "difference": "差", "error": "标准误", "tie": "判定", "yes": "持平", "no": "领先",
        "front": "mAP@0.5:0.95 与毫秒数", "front-is": "前沿", "table": "{title}：全部网络",
        "machine": "机器", "what": "项目", "value": "值", "against": "{measure} 随轮数变化，{title}",
        "warning": "警告",
        "noisy": "同一网络的计时相差达 {worst:.0%}（四分位距除以中位数）：有其他程序占用处理器；"
                 "再次运行同一命令只重测毫秒数，不再训练",
        "note": "数据说明",
        "notes": "每次训练取验证集上最好的一轮，统一评测；+- 为种子间标准差；"
                 "毫秒数为 fp32、批量 1、{threads} 线程、各网络轮流测得；"
                 "预算与前沿以 ONNX Runtime 的毫秒数为准"}}
