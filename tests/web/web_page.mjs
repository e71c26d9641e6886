// The page in the folder given (app.js and what it imports, local.js as backend.js) with a made-up document, camera
// and worker: what happens when the network is changed while it is measured, and the camera for another.
const log = [];
const elements = {};
const nothing = () => {};
const pen = new Proxy({}, { get: () => nothing, set: () => true });
const element = () => ({ classList: { toggle: nothing, contains: () => false }, dataset: {}, style: {}, value: '',
  replaceChildren: nothing, dispatchEvent: nothing, addEventListener: nothing, getContext: () => pen,
  querySelectorAll: () => [], play: async () => {}, parentElement: { clientWidth: 100 } });
const workers = [];

class Silent {                    // opens, and never answers what it is asked to detect
  constructor() { workers.push(this); this.asked = []; this.ended = false; }
  postMessage({ what }) {
    this.asked.push(what);
    if (what === 'open') queueMicrotask(() => this.onmessage({ data: { where: `worker ${workers.length}` } }));
  }
  terminate() { this.ended = true; }
}

const camera = async ({ video: { deviceId } }) => {
  const id = deviceId?.exact ?? 'first';
  log.push(`open ${id}`);
  const track = { addEventListener: nothing, getSettings: () => ({ deviceId: id }), stop: () => log.push(`close ${id}`) };
  return { getVideoTracks: () => [track], getTracks: () => [track] };
};
const fakes = { Worker: Silent, addEventListener: nothing, devicePixelRatio: 1, Option: class {},
  location: { protocol: 'http:', search: '' }, requestAnimationFrame: (call) => setTimeout(call, 5),
  fetch: async () => ({ json: async () => ({ names: ['red'] }) }),
  createImageBitmap: async () => ({ width: 4, height: 4, close: nothing }),
  navigator: { language: 'en', gpu: { requestAdapter: async () => ({}) },
    mediaDevices: { getUserMedia: camera, enumerateDevices: async () => [] } },
  document: { getElementById: (id) => (elements[id] ??= element()), body: element(), documentElement: {},
    querySelectorAll: () => [], createElement: element, addEventListener: nothing, removeEventListener: nothing } };
for (const [name, value] of Object.entries(fakes)) {
  Object.defineProperty(globalThis, name, { value, configurable: true });
}

const until = async (condition) => {
  for (let k = 0; k < 400 && !condition(); k++) await new Promise((resolve) => { setTimeout(resolve, 5); });
  return Boolean(condition());
};
await import(`file://${process.argv[2]}/app.js`);
await until(() => elements['bench-start']?.onclick);
const start = elements['bench-start'];
start.onclick();
const begun = await until(() => start.disabled && workers[0].asked.includes('detect'));
elements.choice.onchange({ target: { value: 'wasm' } });
const again = await until(() => start.disabled === false);
await until(() => elements.where.textContent === 'worker 2');
const status = elements.status.textContent;
await elements.camera.onclick();
await elements['camera-choice'].onchange({ target: { value: 'second' } });
console.log(JSON.stringify({ begun, again, ended: workers[0].ended, where: elements.where.textContent, status, log }));
process.exit(0);
