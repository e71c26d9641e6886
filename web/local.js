// The network inside the browser, in a worker so that the page stays quick; written as backend.js by export.py.

import { Trouble } from './capture.js';

/** What this page runs on: its choices, and how to open one. */
export async function connect() {
  if (location.protocol === 'file:') throw new Trouble('no-file');
  const card = await (await fetch('card.json')).json();
  const choices = [{ id: 'wasm', label: 'WASM' }];
  if (navigator.gpu && await navigator.gpu.requestAdapter().catch(() => null)) {
    choices.unshift({ id: 'webgpu', label: 'WebGPU' });
  }
  return { note: 'local', choiceWord: 'runner', choices, chosen: choices[0].id, conf: 0.25, iou: 0.45, bench: true,
    card, open: (id) => open(card, id) };
}

/** The network by a provider, "webgpu" or "wasm": its names, where it runs, and a function from frame to boxes. */
async function open(card, provider) {
  const worker = new Worker('worker.js', { type: 'module' });
  const ask = asker(worker);
  const { where, threads, adapter, version } = await ask({ what: 'open', card, provider });
  const detect = async ({ picture }, limits) => {
    const start = performance.now();
    const copy = await createImageBitmap(picture);     // the page still shows the one it has
    const found = await ask({ what: 'detect', picture: copy, limits }, [copy]);
    if (found.dropped && provider === 'webgpu') throw new Error('non-finite or absurd numbers');
    return { boxes: found.boxes, ms: { ...found.ms, total: performance.now() - start } };
  };
  return { names: card.names, where, notes: [], provider, threads, adapter, version, detect, close: ask.close };
}

/**
 * A function that sends a message and awaits its answer; answers come in the order of the messages. Its `close` ends
 * the worker: what still waits, or asks later, fails.
 */
function asker(worker) {
  const waiting = [];
  const fail = (reason) => waiting.splice(0).forEach(({ reject }) => reject(new Error(reason)));
  let closed = false;
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.shift();
    if (data.error) reject(new Error(data.error));
    else resolve(data);
  };
  worker.onerror = (event) => {
    event.preventDefault?.();
    fail(event.message || 'the worker does not start');
  };
  const ask = (message, transfer = []) => new Promise((resolve, reject) => {
    waiting.push({ resolve, reject });
    if (closed) fail('the network was closed');
    else worker.postMessage(message, transfer);
  });
  ask.close = () => {
    closed = true;
    worker.terminate();
    fail('the network was closed');
  };
  return ask;
}
