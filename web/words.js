// Every sentence of the page in English and Chinese, and the choice between them.

const WORDS = {
  en: {
    title: 'Micro-YOLO', tagline: 'Object detection in the browser', language: '中文',
    drop: 'Drop an image or a video here', or: 'or choose', camera: 'Camera', file: 'Image or video', stop: 'Stop',
    model: 'Network', runner: 'Runs on', score: 'Score, at least', iou: 'Overlap (NMS IoU)', which: 'Camera',
    fps: 'images/s', network: 'ms network', total: 'ms in all', boxes: 'boxes', nothing: 'nothing found',
    loading: 'Loading the network …', starting: 'Starting the camera …', ready: 'Ready.', save: 'Save the image',
    ended: 'The camera was taken away.',
    local: 'Everything runs in this browser; images do not leave this device.',
    remote: 'Images go to the computer that shows this page and are not kept there.',
    'no-camera': 'No camera was found. Plug one in, or open an image or a video.',
    'camera-denied': 'The camera is not allowed for this page. Allow it in the browser’s address bar, then press Camera again.',
    'camera-busy': 'The camera is in use by another program, or does not start. Close that program, then press Camera again.',
    'camera-insecure': 'Browsers give the camera only to localhost and to https pages. Open this page by one of these, or open an image.',
    'not-a-picture': 'This browser cannot open the file as an image or a video: ',
    'too-large': 'The file is larger than 32 MiB: save the image smaller, then open it again: ',
    'server-gone': 'The server does not answer. Start it again (python detect.py --serve), then reload this page.',
    refused: 'The server says: {said}', 'refused-413': 'The server says: {said}', 'refused-415': 'The server says: {said}',
    'refused-422': 'The server says: {said}',
    'no-file': 'A browser does not start this page from the disk. In its folder type  python -m http.server  and open  http://localhost:8000',
    'fell-back': 'WebGPU did not work here ({why}); continuing with WASM.',
    'bench-title': 'How fast is this device?',
    'bench-text': 'Measures the network alone and the whole way from a frame to its boxes, on what is shown above, or on made-up images.',
    'bench-start': 'Measure', 'bench-again': 'Measure again', 'bench-save': 'Save as JSON', 'bench-warm': 'Warming up …',
    'bench-run': 'Measuring …', 'bench-network': 'Network alone', 'bench-whole': 'Frame to boxes', 'bench-tainted': 'Doubtful: ',
  },
  zh: {
    title: 'Micro-YOLO', tagline: '浏览器里的目标检测', language: 'English',
    drop: '把图片或视频拖到这里', or: '或者选择', camera: '摄像头', file: '图片或视频', stop: '停止',
    model: '网络', runner: '运行方式', score: '最低得分', iou: '重叠阈值 (NMS IoU)', which: '摄像头',
    fps: '帧/秒', network: '毫秒 网络', total: '毫秒 全程', boxes: '个框', nothing: '没有找到目标',
    loading: '正在加载网络 …', starting: '正在打开摄像头 …', ready: '就绪。', save: '保存图片',
    ended: '摄像头已断开。',
    local: '全部计算在本浏览器内完成，图片不会离开这台设备。',
    remote: '图片会发送到提供本页面的电脑，不会被保存。',
    'no-camera': '没有找到摄像头。请插入摄像头，或打开图片或视频。',
    'camera-denied': '本页面没有使用摄像头的权限。请在地址栏中允许，然后再按“摄像头”。',
    'camera-busy': '摄像头正被其他程序占用，或无法启动。请关闭该程序，然后再按“摄像头”。',
    'camera-insecure': '浏览器只允许 localhost 和 https 页面使用摄像头。请用这样的地址打开本页，或打开一张图片。',
    'not-a-picture': '此浏览器无法把该文件作为图片或视频打开：',
    'too-large': '文件超过 32 MiB，请缩小图片后再打开：',
    'server-gone': '服务器没有响应。请重新运行 python detect.py --serve，然后刷新本页。',
    refused: '服务器拒绝了请求（代码 {status}），请刷新本页。', 'refused-413': '图片太大，服务器不接受，请缩小后再打开。',
    'refused-415': '服务器无法把该文件作为图片读取：文件损坏、格式不支持或像素过多。', 'refused-422': '服务器无法加载这个网络，请选择另一个。',
    'no-file': '浏览器不能直接从磁盘运行本页。请在本文件夹中运行  python -m http.server  然后打开  http://localhost:8000',
    'fell-back': 'WebGPU 在此不可用（{why}），改用 WASM。',
    'bench-title': '这台设备有多快？',
    'bench-text': '测量网络本身的时间，以及从一帧到检测框的全程时间；使用上面显示的内容，没有时使用生成的图片。',
    'bench-start': '开始测量', 'bench-again': '再测一次', 'bench-save': '保存为 JSON', 'bench-warm': '正在预热 …',
    'bench-run': '正在测量 …', 'bench-network': '仅网络', 'bench-whole': '从帧到框', 'bench-tainted': '结果存疑：',
  },
};

let language = 'en';

/** The sentence of a name in the page's language; {name} is filled from `values`. */
export function say(name, values = {}) {
  const text = WORDS[language][name] ?? WORDS.en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
}

/** Writes every element with data-word in the language: the one given, the one remembered, or the browser's. */
export function speak(wanted = remembered()) {
  language = WORDS[wanted] ? wanted : 'en';
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll('[data-word]')) element.textContent = say(element.dataset.word);
}

/** Changes to the other language and remembers it. */
export function other() {
  speak(language === 'en' ? 'zh' : 'en');
  try {
    localStorage.setItem('language', language);
  } catch {
    // a browser that keeps nothing asks again next time
  }
}

function remembered() {
  try {
    const kept = localStorage.getItem('language');
    if (kept) return kept;
  } catch {
    // as above
  }
  return navigator.language?.startsWith('zh') ? 'zh' : 'en';
}
