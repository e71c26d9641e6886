// Times on this device, said as benchmark.py says them: warmed up, on images, with reasons for distrust.

const WARM = { least: 10, seconds: 15, off: 0.05 };    // steady: two neighbouring medians of five differ by less
const RUNS = { least: 50, most: 1000 };
const DRIFT = 0.1;                                     // between the medians of the first and the last third
const PERCENTILES = [50, 90, 95, 99];

/**
 * The report, a JSON-able object. net: an opened network (local.js); card: its card; frames: images to take in
 * turn; told(stage, share) is called as it continues.
 */
export async function measure(net, card, frames, input, told, seconds = 10) {
  const limits = { conf: 0.25, iou: 0.45 };
  const tainted = new Set();
  const hidden = () => document.hidden && tainted.add('the page was hidden');
  document.addEventListener('visibilitychange', hidden);
  hidden();
  const once = async (k) => (await net.detect({ picture: frames[k % frames.length], file: null }, limits)).ms;
  try {
    const warm = await warmUp(once, (share) => told('bench-warm', share), Math.max(seconds, 1) * 1.5);
    if (!warm.steady) tainted.add('times were not steady after warming up');
    const start = performance.now();
    const rows = [];
    const elapsed = () => (performance.now() - start) / 1000;
    while (rows.length < RUNS.most && (rows.length < RUNS.least || elapsed() < seconds)) {
      rows.push(await once(rows.length));
      told('bench-run', Math.min(1, Math.max(0, Math.min(rows.length / RUNS.least, elapsed() / seconds))));
    }
    const took = elapsed();
    for (const reason of await doubts(rows)) tainted.add(reason);
    return { schema: 1, kind: 'browser-benchmark', date: new Date().toISOString(), device: await device(net),
      artifact: await artifact(card), input, batch: 1, warm_up: warm, seconds: took,
      network_ms: figures(rows.map((ms) => ms.network)), end_to_end_ms: figures(rows.map((ms) => ms.total), took),
      stages_ms: Object.fromEntries(['pixels', 'letterbox', 'network', 'decode'].map((name) =>
        [name, percentile(rows.map((ms) => ms[name]), 50)])),
      scope: 'network: from uint8 pixels to head outputs in memory; end to end: from a decoded frame to boxes, without '
        + 'camera and drawing; the clock of a browser has steps of 0.1 to 1 ms',
      tainted: [...tainted] };
  } finally {
    document.removeEventListener('visibilitychange', hidden);
  }
}

async function warmUp(once, told, longest) {
  const start = performance.now();
  const times = [];
  const elapsed = () => (performance.now() - start) / 1000;
  const median = (from, to) => percentile(times.slice(from, to), 50);
  let steady = false;
  while (!steady && (times.length < WARM.least || elapsed() < Math.min(WARM.seconds, longest))) {
    times.push((await once(times.length)).network);
    told(Math.min(1, times.length / WARM.least));
    steady = times.length >= WARM.least && Math.abs(median(-5) / median(-10, -5) - 1) < WARM.off;
  }
  return { runs: times.length, seconds: elapsed(), first_ms: times[0], steady };
}

async function doubts(rows) {
  const found = [];
  const third = Math.floor(rows.length / 3);
  const median = (part) => percentile(part.map((ms) => ms.network), 50);
  const drift = median(rows.slice(-third)) / median(rows.slice(0, third)) - 1;
  if (Math.abs(drift) > DRIFT) found.push(`the network's time drifted by ${Math.round(100 * drift)} %`);
  const battery = await navigator.getBattery?.().catch(() => null);
  if (battery && !battery.charging) found.push(`on battery (${Math.round(100 * battery.level)} %)`);
  return found;
}

async function device(net) {
  const { userAgent, hardwareConcurrency, deviceMemory = null, platform } = navigator;
  return { user_agent: userAgent, platform, hardware_concurrency: hardwareConcurrency, memory_gib: deviceMemory,
    screen: [screen.width, screen.height, devicePixelRatio], cross_origin_isolated: self.crossOriginIsolated,
    runtime: 'onnxruntime-web', runtime_version: net.version, provider: net.provider, threads: net.threads,
    adapter: net.adapter };
}

/** The file that ran; its digest is counted here where the browser can, else taken from the card. */
async function artifact(card) {
  const bytes = await (await fetch('model.onnx')).arrayBuffer();
  let sha256 = card.onnx_sha256 ?? null;
  const counted = Boolean(globalThis.crypto?.subtle);
  if (counted) {
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
    sha256 = [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  }
  return { format: 'onnx', bytes: bytes.byteLength, sha256, sha256_counted_here: counted, imgsz: card.imgsz,
    precision: card.precision, opset: card.opset, classes: card.names.length,
    source_sha256: card.source_sha256 ?? null };
}

function figures(times, seconds = null) {
  const mean = times.reduce((sum, ms) => sum + ms, 0) / times.length;
  const sd = Math.sqrt(times.reduce((sum, ms) => sum + (ms - mean) ** 2, 0) / Math.max(1, times.length - 1));
  const cuts = Object.fromEntries(PERCENTILES.map((p) => [`p${p}`, percentile(times, p)]));
  return { n: times.length, ...cuts, min: Math.min(...times), max: Math.max(...times), mean, sd,
    fps: 1000 / cuts.p50, sustained_fps: seconds ? times.length / seconds : null, samples: times.map((ms) => +ms.toFixed(3)) };
}

/** The percentile, linear between neighbours. */
function percentile(times, p) {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (p / 100) * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + ((sorted[low + 1] ?? sorted[low]) - sorted[low]) * (at - low);
}

/** Eight different made-up images of 1280 x 720 px, for a device that has none at hand. */
export async function madeUp() {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [1280, 720];
  const pen = canvas.getContext('2d');
  const made = [];
  for (let k = 0; k < 8; k++) {
    for (let spot = 0; spot < 60; spot++) {
      const at = (a) => (Math.sin(spot * 12.9898 + k * 78.233 + a * 37.719) * 43758.5453) % 1;
      pen.fillStyle = `hsl(${360 * at(1)} 60% ${50 + 40 * at(2)}%)`;
      pen.fillRect(640 + 640 * at(3), 360 + 360 * at(4), 300 * at(5), 200 * at(6));
    }
    made.push(await createImageBitmap(canvas));
  }
  return made;
}
