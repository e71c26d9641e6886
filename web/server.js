// The networks of the computer that shows this page (detect.py --serve); in the exported folder local.js stands here.

import { Trouble } from './capture.js';

const LONGEST = 1280;             // px of a frame's longer side as it is sent; networks see less
const MAX_BODY = 32 * 2 ** 20;    // as detection/serve/http.py

/** What this page runs on: its choices, and how to open one. */
export async function connect() {
  const { models, chosen, conf, iou } = await call('models', { method: 'GET' });
  return { note: 'remote', choiceWord: 'model', choices: models, chosen, conf, iou, bench: false, open };
}

/** The network of a choice: its names, where it runs, and a function from frame to boxes. */
async function open(id) {
  const kind = { 'Content-Type': 'application/octet-stream' };
  const { names, where, notes } = await call(`open?model=${id}`, { headers: kind });
  return { names, where, notes, detect: (frame, limits) => detect(id, frame, limits), close: () => {} };
}

async function detect(id, { picture, file }, { conf, iou }) {
  const start = performance.now();
  const body = file ?? await encode(picture);
  if (body.size > MAX_BODY) throw new Trouble('too-large', file?.name);
  const headers = { 'Content-Type': body.type.startsWith('image/') ? body.type : 'application/octet-stream' };
  const found = await call(`detect?model=${id}&conf=${conf}&iou=${iou}`, { headers, body });
  const [sx, sy] = [picture.width / found.width, picture.height / found.height];
  const boxes = found.boxes.map(([a, b, c, d, ...rest]) => [a * sx, b * sy, c * sx, d * sy, ...rest]);
  return { boxes, ms: { network: found.ms.network, total: performance.now() - start } };
}

/** A frame as JPEG, no larger than needed. */
function encode(picture) {
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, 'image/jpeg', 0.92); });
}

async function call(what, options) {
  let answer;
  let content;
  try {
    answer = await fetch(`api/${what}`, { method: 'POST', ...options });
    content = await answer.json();
  } catch {
    throw new Trouble('server-gone');                  // or a proxy answers in its place
  }
  if (answer.ok) return content;
  const word = [413, 415, 422].includes(answer.status) ? `refused-${answer.status}` : 'refused';
  throw new Trouble(word, '', { said: content.error, status: answer.status });
}
