// Boxes and labels on a canvas, in the colours of detection/draw.py.

const GOLDEN = 0.6180339887498949;
const LIGHTNESS = [0.7, 0.58, 0.82];

/** The colour of a class, the same as in images drawn by detect.py. */
export function colour(index) {
  return `oklch(${LIGHTNESS[index % 3]} 0.19 ${(360 * (0.08 + index * GOLDEN)) % 360}deg)`;
}

/** Black or white, whichever stands out from the class's colour. */
export function textColour(index) {
  return LIGHTNESS[index % 3] > 0.6 ? '#000' : '#fff';
}

/**
 * Draws the image and its boxes, as sharp as the screen shows them; lines and text keep their size there,
 * whatever the image's.
 */
export function draw(canvas, picture, boxes, names) {
  const room = canvas.parentElement.clientWidth * devicePixelRatio;
  const zoom = Math.min(2, Math.max(1, room / picture.width));
  const size = [picture.width, picture.height].map((side) => Math.round(side * zoom));
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const pen = canvas.getContext('2d');
  pen.drawImage(picture, 0, 0, ...size);
  const unit = size[0] / Math.max(1, canvas.getBoundingClientRect().width);      // px of the canvas a px of the page
  const text = Math.round((canvas.clientWidth < 500 ? 11 : 13) * unit);
  pen.lineWidth = 2.5 * unit;
  pen.lineJoin = 'round';
  pen.font = `600 ${text}px system-ui, sans-serif`;
  pen.textBaseline = 'middle';
  const scaled = boxes.map(([a, b, c, d, ...rest]) => [...[a, b, c, d].map((v) => v * zoom), ...rest]);
  for (const [x1, y1, x2, y2, , label] of [...scaled].reverse()) {     // the best, which come first, lie on top
    pen.strokeStyle = colour(label);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  const taken = [];
  for (const box of scaled) write(pen, box, names, { unit, text, taken, width: size[0], height: size[1] });
}

/** One label at the first free place: above its box, inside its top, below it; at its left, then its right end. */
function write(pen, [x1, y1, x2, y2, score, label], names, { unit, text, taken, width, height }) {
  const words = `${names[label] ?? label} ${score.toFixed(2)}`;
  const w = pen.measureText(words).width + 8 * unit;
  const h = text + 6 * unit;
  const edge = pen.lineWidth / 2;
  const inside = (value, most) => Math.max(0, Math.min(value, most));
  const free = ([x, y]) => y >= 0 && y + h <= height
    && !taken.some(([a, b, c, d]) => x < a + c && a < x + w && y < b + d && b < y + h);
  const places = [x1 - edge, x2 + edge - w].flatMap((x) =>
    [y1 - h + edge, y1 - edge, y2 - edge, y2 - h + edge].map((y) => [inside(x, width - w), y]));
  const [x, y] = places.find(free) ?? [places[0][0], inside(places[0][1], height - h)];
  taken.push([x, y, w, h]);
  pen.fillStyle = colour(label);
  pen.fillRect(x, y, w, h);
  pen.fillStyle = textColour(label);
  pen.fillText(words, x + 4 * unit, y + h / 2 + unit / 2);
}
