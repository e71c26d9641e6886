// The page: sources, sliders and figures, put together around one loop that runs while frames come.

import { connect } from './backend.js';
import { cameras, openCamera, openFile, Trouble } from './capture.js';
import { colour, draw, textColour } from './draw.js';
import { other, say, speak } from './words.js';

const part = (id) => document.getElementById(id);
const canvas = part('picture');
let backend;                      // what runs networks: server.js or local.js
let net = null;
let source = null;
let last = null;                  // the frame that is shown, and its boxes
let turn = 0;                     // counts sources and networks; a loop of an earlier turn ends
let said = '';
let soon = 0;                     // the timer of a slider that still moves

/** Shows a sentence in the status line: a word of words.js with what follows it, or an error. */
function tell(what, bad = false) {
  said = what;
  const status = part('status');
  status.textContent = typeof what === 'function' ? what() : what;
  status.classList.toggle('bad', bad);
}

function fault(error) {
  tell(error instanceof Trouble ? () => say(error.word, error.values) + error.detail : error.message, true);
}

const limits = () => ({ conf: Number(part('score').value), iou: Number(part('iou').value) });

/** Opens the chosen network; a WebGPU that fails, now or later, is replaced by WASM, and `why` is said. */
async function openNet(id, why = '') {
  const mine = ++turn;
  tell(() => say('loading'));
  net?.close();
  net = null;
  let opened;
  try {
    opened = await backend.open(id);
  } catch (error) {
    if (id !== 'webgpu' || mine !== turn) throw error;
    part('choice').value = 'wasm';
    return openNet('wasm', error.message);
  }
  if (mine !== turn) return opened.close();
  net = opened;
  part('where').textContent = net.where;
  tell(() => (why ? say('fell-back', { why }) : net?.notes[0] ?? say('ready')));
  follow();
}

/** Shows the frames of a source instead of the one before, whose image and figures go. */
function show(next) {
  turn += 1;
  source?.close();
  source = next;
  last = null;
  for (const id of ['fps', 'network', 'total', 'count']) part(id).textContent = '–';
  part('found').replaceChildren();
  canvas.width = canvas.width;                          // empties it
  document.body.classList.toggle('showing', Boolean(next));
  document.body.classList.toggle('live', Boolean(next?.live));
  follow();
}

/** Frames of the source, one after the other, until it, or the network, is another. */
async function follow() {
  const mine = turn;
  if (!net || !source) return;
  let ended = performance.now();
  let rate = 0;
  try {
    do {
      const frame = await source.next();
      if (mine !== turn) return;
      const { boxes, ms } = await net.detect(frame, limits());
      if (mine !== turn) return;
      const now = performance.now();
      rate = rate ? 0.9 * rate + 0.1 * (now - ended) : now - ended;
      ended = now;
      if (last && last.frame.picture !== frame.picture) last.frame.picture.close();
      last = { frame, boxes };
      draw(canvas, frame.picture, boxes, net.names);
      // for scripts that watch the page
      canvas.dispatchEvent(new CustomEvent('detections', { detail: { boxes, picture: frame.picture } }));
      figures(source.live ? 1000 / rate : 1000 / ms.total, ms, boxes);
    } while (source.live);
  } catch (error) {
    if (mine !== turn) return;
    if (net.provider !== 'webgpu') {
      show(null);
      return fault(error);
    }
    part('choice').value = 'wasm';
    openNet('wasm', error.message).catch(fault);
  }
}

function figures(fps, ms, boxes) {
  part('fps').textContent = fps.toFixed(fps < 10 ? 1 : 0);
  part('network').textContent = ms.network.toFixed(ms.network < 10 ? 1 : 0);
  part('total').textContent = ms.total.toFixed(ms.total < 10 ? 1 : 0);
  part('count').textContent = boxes.length;
  const counts = new Map();
  for (const [, , , , , label] of boxes) counts.set(label, (counts.get(label) ?? 0) + 1);
  const chips = [...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const chip = document.createElement('li');
    chip.textContent = `${net.names[label] ?? label} ${count}`;
    chip.style.background = colour(label);
    chip.style.color = textColour(label);
    return chip;
  });
  if (chips.length) part('found').replaceChildren(...chips);
  else part('found').textContent = say('nothing');
}

async function startCamera(id) {
  if (source && 'id' in source) show(null);          // a phone opens no second camera beside the first
  tell(() => say('starting'));
  try {
    show(await openCamera(id, () => { show(null); tell(() => say('ended'), true); }));
    const all = await cameras();
    part('which').hidden = all.length < 2;
    part('camera-choice').replaceChildren(...all.map((one, k) => new Option(one.label || `${k + 1}`, one.deviceId)));
    part('camera-choice').value = source.id;
    tell('');
  } catch (error) {
    fault(error);
  }
}

async function startFile(file) {
  if (!file) return;
  try {
    show(await openFile(file));
    tell(file.name);
  } catch (error) {
    show(null);
    fault(error);
  }
}

/** Writes the numbers beside the sliders; a still image is looked at again. */
function moved() {
  for (const id of ['score', 'iou']) part(`${id}-value`).textContent = Number(part(id).value).toFixed(2);
  clearTimeout(soon);
  if (source && !source.live) soon = setTimeout(() => { turn += 1; follow(); }, 80);
}

function save() {
  canvas.toBlob((blob) => download(blob, 'micro-yolo.jpg'), 'image/jpeg', 0.92);
}

function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The benchmark's part of the page; its code is only loaded where the network runs in the browser. */
async function prepareBench() {
  const { madeUp, measure } = await import('./bench.js');
  let report;
  part('bench').hidden = false;
  part('bench-save').onclick = () => download(new Blob([JSON.stringify(report, null, 1)],
    { type: 'application/json' }), 'micro-yolo-benchmark.json');
  part('bench-start').onclick = async () => {
    if (!net) return;
    const measured = net;
    const seconds = Number(new URLSearchParams(location.search).get('seconds')) || 10;
    const shown = last ? [await createImageBitmap(last.frame.picture)] : null;
    const frames = shown ?? await madeUp();
    if (source?.live) show(null);
    part('bench-start').disabled = true;
    part('bench-progress').hidden = false;
    try {
      report = await measure(measured, backend.card, frames, { pictures: frames.length, made_up: !shown,
        width: frames[0].width, height: frames[0].height }, (stage, share) => {
        part('bench-progress').value = share;
        tell(() => say(stage));
      }, seconds);
      part('bench-result').textContent = JSON.stringify(report);
      result(report);
      tell(() => say('ready'));
    } catch (error) {
      if (net === measured) fault(error);              // else another was chosen, and the page says how that goes
    }
    part('bench-start').disabled = false;
    part('bench-progress').hidden = true;
    part('bench-start').textContent = say(part('bench-start').dataset.word = 'bench-again');
  };
}

function result(report) {
  const cell = (ms) => ms.toFixed(1);
  for (const [name, scope] of [['network', report.network_ms], ['whole', report.end_to_end_ms]]) {
    const cells = [cell(scope.p50), cell(scope.p90), cell(scope.fps)];
    part(`bench-${name}`).querySelectorAll('td').forEach((td, k) => { td.textContent = cells[k]; });
  }
  part('bench-table').hidden = false;
  part('bench-save').hidden = false;
  part('bench-doubts').textContent = report.tainted.length ? say('bench-tainted') + report.tainted.join('; ') : '';
}

function listen() {
  part('language').onclick = () => { other(); tell(said, part('status').classList.contains('bad')); };
  part('camera').onclick = () => startCamera();
  part('camera-choice').onchange = (event) => startCamera(event.target.value);
  part('file').onchange = (event) => { startFile(event.target.files[0]); event.target.value = ''; };
  part('stop').onclick = () => { show(null); tell(() => say('ready')); };
  part('save').onclick = save;
  part('choice').onchange = (event) => openNet(event.target.value).catch(fault);
  for (const id of ['score', 'iou']) part(id).oninput = moved;
  const over = (event) => { event.preventDefault(); document.body.classList.add('over'); };
  const out = (event) => { if (!event.relatedTarget) document.body.classList.remove('over'); };
  addEventListener('dragover', over);
  addEventListener('dragleave', out);
  addEventListener('drop', (event) => {
    event.preventDefault();
    document.body.classList.remove('over');
    startFile(event.dataTransfer.files[0]);
  });
}

async function start() {
  speak();
  listen();
  tell(() => say('loading'));
  try {
    backend = await connect();
    part('note').textContent = say(part('note').dataset.word = backend.note);
    part('choice-name').textContent = say(part('choice-name').dataset.word = backend.choiceWord);
    part('choice').replaceChildren(...backend.choices.map(({ id, label }) => new Option(label, id)));
    part('choice').value = backend.chosen;
    part('score').value = backend.conf;
    part('iou').value = backend.iou;
    moved();
    await openNet(backend.chosen);
    if (backend.bench) await prepareBench();
  } catch (error) {
    fault(error);
  }
}

start();
