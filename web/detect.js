// From pixels to boxes, without a page: letterbox, decoding, NMS. The numbers are those of data/augment.py and
// models/heads/; tests/web/test_web_detect.py holds both sides against each other.

const GREY = 114;                 // border of the letterbox
const MAX_CANDIDATES = 8192;      // NMS is quadratic, and a broken network finds millions
const EXP_LIMIT = 8;              // exp(8) anchors is wider than any image

const { max, min, floor, ceil, exp, log, fround } = Math;
const sigmoid = (x) => 1 / (1 + exp(-x));

/** The nearest whole number; halves go to the even one, as in Python. */
function round(value) {
  const low = floor(value);
  const rest = value - low;
  return rest === 0.5 ? low + (low % 2) : low + (rest > 0.5);
}

/** Where an image of width x height px lies in the network's input of size x size px. */
export function geometry(width, height, size) {
  const scale = min(size / height, size / width);
  const w = max(1, round(width * scale));
  const h = max(1, round(height * scale));
  return { scale, width: w, height: h, left: floor((size - w) / 2), top: floor((size - h) / 2) };
}

/** Planar RGB [3, size, size] of RGBA pixels, undistorted and centred on grey, and the geometry. */
export function letterbox(rgba, width, height, size, out = new Uint8ClampedArray(3 * size * size)) {
  const place = geometry(width, height, size);
  out.fill(GREY);
  // averages when shrinking, because single pixels would lose small objects
  const resize = place.scale < 1 ? shrink : enlarge;
  resize(rgba, width, height, place, out, size);
  return { image: out, place };
}

/** For each target: the sources it covers, and their shares of it (cv2's INTER_AREA). */
function shares(source, target) {
  const scale = source / target;
  const rows = [];
  for (let t = 0; t < target; t++) {
    const start = t * scale;
    const end = start + scale;
    const cell = min(scale, source - start);
    const last = min(floor(end), source - 1);
    const first = min(ceil(start), last);
    if (first - start > 1e-3) rows.push([t, first - 1, (first - start) / cell]);
    for (let s = first; s < last; s++) rows.push([t, s, 1 / cell]);
    if (end - last > 1e-3) rows.push([t, last, min(end - last, 1, cell) / cell]);
  }
  return rows;
}

function shrink(rgba, width, height, place, out, size) {
  const across = shares(width, place.width);
  const targets = Int32Array.from(across, ([t]) => 3 * t);
  const sources = Int32Array.from(across, ([, s]) => 4 * s);
  const weights = Float32Array.from(across, ([, , w]) => w);
  const line = new Float32Array(3 * place.width);
  // cv2 has a way of its own for exact halves, which rounds 0.5 up
  const start = 2 * place.width === width && 2 * place.height === height ? 1e-3 : 0;
  const sum = new Float32Array(3 * place.width).fill(start);
  let held = -1;
  let row = 0;
  const finish = () => {
    put(sum, row, place, out, size);
    sum.fill(start);
  };
  for (const [target, source, weight] of shares(height, place.height)) {
    if (target !== row) {
      finish();
      row = target;
    }
    if (source !== held) {
      line.fill(0);
      const from = source * width * 4;
      for (let k = 0; k < targets.length; k++) {
        const t = targets[k];
        const s = from + sources[k];
        const w = weights[k];
        line[t] += rgba[s] * w;
        line[t + 1] += rgba[s + 1] * w;
        line[t + 2] += rgba[s + 2] * w;
      }
      held = source;
    }
    for (let k = 0; k < sum.length; k++) sum[k] += line[k] * weight;
  }
  finish();
}

/** For each target: the pixel before it, the one after, and their shares in 2048ths (cv2's INTER_LINEAR). */
function neighbours(source, target) {
  return Array.from({ length: target }, (_, t) => {
    const x = (t + 0.5) * (source / target) - 0.5;
    const low = min(max(floor(x), 0), source - 1);
    const share = low === source - 1 ? 0 : max(x - low, 0);
    return [low, min(low + 1, source - 1), round((1 - share) * 2048), round(share * 2048)];
  });
}

function enlarge(rgba, width, height, place, out, size) {
  const across = neighbours(width, place.width);
  const line = new Float32Array(3 * place.width);
  neighbours(height, place.height).forEach(([above, below, up, down], row) => {
    for (let x = 0; x < across.length; x++) {
      const [left, right, west, east] = across[x];
      for (let c = 0; c < 3; c++) {
        const mix = (y) => (rgba[4 * (y * width + left) + c] * west + rgba[4 * (y * width + right) + c] * east) >> 4;
        // whole numbers, cut off where cv2 cuts them off
        line[3 * x + c] = (((up * mix(above)) >> 16) + ((down * mix(below)) >> 16) + 2) >> 2;
      }
    }
    put(line, row, place, out, size);
  });
}

/** One line of the resized image into its three planes; a clamped array rounds as cv2 does. */
function put(line, row, place, out, size) {
  const plane = size * size;
  let at = (place.top + row) * size + place.left;
  for (let k = 0; k < line.length; k += 3, at++) {
    out[at] = line[k];
    out[at + plane] = line[k + 1];
    out[at + 2 * plane] = line[k + 2];
  }
}

/**
 * Boxes [[x1, y1, x2, y2, score, class], ...] (px of the input), best first, of one image's head outputs.
 * maps: {data: Float32Array of [*shape, G, G], cells: G} a head; heads: {kind, stride} and what a kind tells, each.
 */
export function detections(maps, heads, limits) {
  const found = [];
  let dropped = 0;
  let side = 0;
  maps.forEach((map, k) => {
    side = max(side, map.cells * heads[k].stride);
    dropped += candidates(map, heads[k], limits, found);
  });
  const best = found.sort((a, b) => b[4] - a[4]).slice(0, MAX_CANDIDATES);
  return { boxes: suppress(best, side, limits.iou).slice(0, limits.maxDet ?? 300), dropped };
}

/** What each kind of head says: predictions a cell, the channel of class 0, how many classes, objectness, box. */
const KINDS = {
  anchor: {
    predictions: ({ anchors }) => anchors.length,
    first: 5,
    classes: (head, channels) => channels - 5,
    objectness: (value) => value(4),
    box({ stride, anchors, xy_scale: reach }, value, prediction, x, y) {
      const shift = (reach - 1) / 2;
      const cx = (sigmoid(value(0)) * reach - shift + x) * stride;
      const cy = (sigmoid(value(1)) * reach - shift + y) * stride;
      const w = exp(min(value(2), EXP_LIMIT)) * anchors[prediction][0];
      const h = exp(min(value(3), EXP_LIMIT)) * anchors[prediction][1];
      return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
    },
  },
  yolox: {
    predictions: () => 1,
    first: 5,
    classes: (head, channels) => channels - 5,
    objectness: (value) => value(4),
    box({ stride }, value, prediction, x, y) {
      const [cx, cy] = [(value(0) + x) * stride, (value(1) + y) * stride];
      const [w, h] = [2, 3].map((side) => exp(min(value(side), EXP_LIMIT)) * stride);
      return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
    },
  },
  free: {
    predictions: () => 1,
    first: 0,
    classes: ({ bins }, channels) => channels - 4 * bins,
    objectness: () => Infinity,
    box({ stride, bins, centre, classes }, value, prediction, x, y) {
      const [left, up, right, down] = [0, 1, 2, 3].map((side) => {
        const raw = Array.from({ length: bins }, (_, k) => value(classes + side * bins + k));
        const most = max(...raw);
        const parts = raw.map((v) => exp(v - most));
        const sum = parts.reduce((a, b) => a + b);
        return stride * parts.reduce((mean, part, k) => mean + k * part / sum, 0);
      });
      const [cx, cy] = [(x + centre) * stride, (y + centre) * stride];
      return [cx - left, cy - up, cx + right, cy + down];
    },
  },
};

/** Adds the boxes of one head above the threshold to `found`; how many cells had absurd numbers. */
function candidates({ data, cells }, head, { conf }, found) {
  const kind = KINDS[head.kind];
  if (!kind) throw new Error(`this page knows no heads of kind ${head.kind}; it knows ${Object.keys(KINDS)}`);
  const plane = cells * cells;
  const predictions = kind.predictions(head);
  const channels = data.length / (predictions * plane);
  const classes = kind.classes(head, channels);
  const floorOf = conf <= 0 ? -Infinity : conf < 1 ? log(conf / (1 - conf)) : Infinity;
  const limit = 8 * cells * head.stride;         // eight images wide is no object
  const whole = allFinite(data, 0, data.length, 1);
  let dropped = 0;
  for (let a = 0; a < predictions; a++) {
    for (let cell = 0; cell < plane; cell++) {
      const at = a * channels * plane + cell;
      const value = (channel) => data[at + channel * plane];
      if (!whole && !allFinite(data, at, channels, plane)) {
        dropped += 1;
        continue;
      }
      if (!(kind.objectness(value) > floorOf)) continue;
      let label = 0;
      for (let k = 1; k < classes; k++) if (value(kind.first + k) > value(kind.first + label)) label = k;
      const score = fround(sigmoid(value(kind.first + label)) * sigmoid(kind.objectness(value)));
      if (!(score > conf)) continue;
      const box = kind.box({ ...head, classes }, value, a, cell % cells, floor(cell / cells));
      if (box[2] - box[0] < limit && box[3] - box[1] < limit) found.push([...box, score, label]);
      else dropped += 1;
    }
  }
  return dropped;
}

function allFinite(data, start, count, step) {
  for (let k = 0; k < count; k++) if (!Number.isFinite(data[start + k * step])) return false;
  return true;
}

/** The boxes, best first, that overlap no better one of their class by more than `limit`. */
function suppress(boxes, side, limit) {
  const kept = [];
  // Python moves classes apart in fp32 to compare all at once; the same moves give the same roundings
  const moved = boxes.map((box) => Float32Array.from(box.slice(0, 4), (v) =>
    fround(min(max(v, -2 * side), 3 * side)) + box[5] * 6 * side));
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  boxes.forEach((box, k) => {
    const one = moved[k];
    const clear = kept.every((other) => {
      if (boxes[other][5] !== box[5]) return true;
      const two = moved[other];
      const w = max(0, min(one[2], two[2]) - max(one[0], two[0]));
      const h = max(0, min(one[3], two[3]) - max(one[1], two[1]));
      return !(w * h / (area(one) + area(two) - w * h) > limit);
    });
    if (clear) kept.push(k);
  });
  return kept.map((k) => boxes[k]);
}

/** The same boxes in px of the width x height image, clipped to it. */
export function scaleBack(boxes, place, width, height) {
  const [sx, sy] = [width / place.width, height / place.height];
  const fit = (value, offset, scale, most) => min(max((value - offset) * scale, 0), most);
  return boxes.map((box) => box.map((value, k) => (k > 3 ? value
    : k % 2 ? fit(value, place.top, sy, height) : fit(value, place.left, sx, width))));
}

/** The heads of a card (deploy/artifact.py), in the order of its outputs: what it tells of each, by name. */
export function headsOf(card) {
  const told = Object.entries(card).filter(([, of]) => of && card.outputs.every((name) => Object.hasOwn(of, name)));
  return card.outputs.map((name) => ({ kind: 'anchor', ...Object.fromEntries(told.map(([key, of]) => [key, of[name]])),
    stride: card.strides[name] }));
}
