// Where images come from: a camera, an image file, a video file. Each gives frames one at a time.

/** A fault that the page has words for. */
export class Trouble extends Error {
  constructor(word, detail = '', values = {}) {
    super(word + detail);
    Object.assign(this, { word, detail, values });
  }
}

const CAMERA_FAULTS = { NotAllowedError: 'camera-denied', SecurityError: 'camera-denied', NotFoundError: 'no-camera',
  OverconstrainedError: 'no-camera', NotReadableError: 'camera-busy', AbortError: 'camera-busy' };

/** A source of the frames of a camera. Its `ended` is called when the camera is taken away. */
export async function openCamera(id, ended) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Trouble('camera-insecure');
  const choice = id ? { deviceId: { exact: id } } : { facingMode: 'environment' };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: false,
      video: { ...choice, width: { ideal: 960 }, height: { ideal: 540 } } });      // networks see less
  } catch (error) {
    throw new Trouble(CAMERA_FAULTS[error.name] ?? 'camera-busy');
  }
  const [track] = stream.getVideoTracks();
  track.addEventListener('ended', ended);
  const video = element();
  video.srcObject = stream;
  await video.play();
  return { ...frames(video), id: track.getSettings().deviceId, close: () => stream.getTracks().forEach((t) => t.stop()) };
}

/** The cameras there are; names are only told once one was allowed. */
export async function cameras() {
  const all = await navigator.mediaDevices.enumerateDevices();
  return all.filter((device) => device.kind === 'videoinput');
}

/** A source of the frames of an image or video file. */
export async function openFile(file) {
  if (!file.type.startsWith('video/')) {
    try {
      return stillOf(await createImageBitmap(file), file);
    } catch {
      // a video without a type, or nothing that can be shown
    }
  }
  const video = element();
  video.loop = true;
  const address = URL.createObjectURL(file);
  video.src = address;
  try {
    await video.play();
  } catch {
    URL.revokeObjectURL(address);
    throw new Trouble('not-a-picture', file.name);
  }
  return { ...frames(video), close: () => { video.pause(); URL.revokeObjectURL(address); } };
}

/** A source of one image. `file` goes to a server as it is, so that both sides decode the same bytes. */
export function stillOf(bitmap, file = null) {
  return { live: false, next: async () => ({ picture: bitmap, file }), close: () => bitmap.close?.() };
}

function element() {
  const video = document.createElement('video');
  video.muted = true;
  video.playsInline = true;
  return video;
}

/** The newest frame each time, never the same one twice. */
function frames(video) {
  const fresh = () => new Promise((resolve) => {
    if (video.requestVideoFrameCallback) {
      const late = setTimeout(resolve, 1000);          // a hidden page gets no callbacks
      video.requestVideoFrameCallback(() => { clearTimeout(late); resolve(); });
    } else requestAnimationFrame(resolve);
  });
  return { live: true, video, next: async () => {
    await fresh();
    return { picture: await createImageBitmap(video), file: null };
  } };
}
