// What web/detect.js makes of the cases in the folder given: cases.json names raw files, answers.json takes the results.
import { readFileSync, writeFileSync } from 'node:fs';
import { detections, geometry, letterbox, scaleBack } from '../../web/detect.js';

const folder = process.argv[2];
const bytes = (name) => readFileSync(`${folder}/${name}`);
const { letterboxes, maps, boxes, sizes } = JSON.parse(bytes('cases.json'));

const answers = {
  letterboxes: letterboxes.map(({ file, width, height, size }) => {
    const { image, place } = letterbox(bytes(file), width, height, size);
    writeFileSync(`${folder}/${file}.out`, image);
    return place;
  }),
  maps: maps.map(({ files, heads, limits }) => detections(files.map(({ file, cells }) => {
    const data = bytes(file);
    return { data: new Float32Array(data.buffer, data.byteOffset, data.length / 4), cells };
  }), heads, limits)),
  boxes: boxes.map(({ rows, width, height, size }) => scaleBack(rows, geometry(width, height, size), width, height)),
  sizes: sizes.map(([width, height, size]) => geometry(width, height, size)),
};
writeFileSync(`${folder}/answers.json`, JSON.stringify(answers));
