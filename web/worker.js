// Runs the ONNX file by onnxruntime-web: pixels, letterbox, network, boxes. One message, one answer.

import { detections, headsOf, letterbox, scaleBack } from './detect.js';

// named .js: Debian's nginx calls an .mjs no script, and browsers then refuse it
const RUNTIMES = { webgpu: ['ort.webgpu.bundle.min.js', 'ort-wasm-simd-threaded.asyncify.wasm'],
  wasm: ['ort.wasm.bundle.min.js', 'ort-wasm-simd-threaded.wasm'] };
let ort;
let session;
let card;
let heads;
let canvas;
let input;

async function open({ card: given, provider }) {
  const [script, wasm] = RUNTIMES[provider];
  ort = await import(`./ort/${script}`);
  // threads need a page that is isolated from others, which takes headers that plain file servers do not send
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { wasm: new URL(`ort/${wasm}`, location.href).href };
  ort.env.logLevel = 'error';
  card = given;
  heads = headsOf(card);
  session = await ort.InferenceSession.create(new URL('model.onnx', location.href).href,
    { executionProviders: [provider], graphOptimizationLevel: 'all' });
  canvas = new OffscreenCanvas(1, 1);
  input = new Uint8ClampedArray(3 * card.imgsz ** 2);
  const adapter = provider === 'webgpu' ? describe(await navigator.gpu.requestAdapter()) : null;
  await run();                                           // WebGPU makes its programs in the first pass
  const where = provider === 'webgpu' ? `WebGPU${adapter?.vendor ? ` (${adapter.vendor})` : ''}`
    : `WASM, ${threads} thread${threads > 1 ? 's' : ''}`;
  return { where, threads, adapter, version: ort.env.versions?.web ?? '' };
}

function describe(adapter) {
  const { vendor, architecture, device, description } = adapter?.info ?? {};
  return { vendor, architecture, device, description };
}

/** Head outputs of what lies in `input`. */
async function run() {
  const side = card.imgsz;
  const bytes = new Uint8Array(input.buffer);
  const out = await session.run({ images: new ort.Tensor('uint8', bytes, [1, 3, side, side]) });
  return Promise.all(card.outputs.map(async (name) => {
    const data = await out[name].getData();
    return { data, cells: out[name].dims.at(-1) };
  }));
}

async function detect({ picture, limits }) {
  const times = [performance.now()];
  const stamp = () => times.push(performance.now());
  const { width, height } = picture;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  pen.drawImage(picture, 0, 0);
  picture.close();
  const pixels = pen.getImageData(0, 0, width, height).data;
  stamp();
  const { place } = letterbox(pixels, width, height, card.imgsz, input);
  stamp();
  const maps = await run();
  stamp();
  const found = detections(maps, heads, limits);
  const boxes = scaleBack(found.boxes, place, width, height);
  stamp();
  const [pixelsMs, letterboxMs, network, decode] = times.slice(1).map((time, k) => time - times[k]);
  return { boxes, dropped: found.dropped, ms: { pixels: pixelsMs, letterbox: letterboxMs, network, decode } };
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage(await (data.what === 'open' ? open(data) : detect(data)));
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error) });
  }
};
