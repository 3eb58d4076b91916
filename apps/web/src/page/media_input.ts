/**
 * Files that a person gives, as pictures and recordings: decoded by the browser.
 *
 * WAV is read here, to the last bit; other recordings are decoded by WebAudio at 48 kHz, and brought to the encoder's
 * rate by the host's own resampler.
 */
import { MediaError } from "../host/errors.js";
import { isWav, readPpm, readWav } from "../host/media_files.js";
import { type Picture, pictureOfRgba } from "../host/picture.js";
import type { Clip } from "../host/sound.js";

const DECODED_RATE = 48000;
const MOST_BYTES = 512 << 20; // of a recording, which a browser decodes as a whole
const PPM_HEAD = 100;

/** Whether a file is taken for a picture or for a recording. */
export function kindOf(file: File): "image" | "audio" | null {
  if (file.type.startsWith("image/") || file.name.endsWith(".ppm")) return "image";
  return file.type.startsWith("audio/") || file.type.startsWith("video/") ? "audio" : null;
}

/** The picture in a file, upright, of so many pixels at most. Throws MediaError. */
export async function readPicture(file: Blob, name: string, maxPixels: number): Promise<Picture> {
  const tooLarge = (size: string) =>
    new MediaError(`'${name}' has ${size}, the limit is ${maxPixels} pixels; scale it down`);
  if (name.endsWith(".ppm")) {
    if (file.size > 3 * maxPixels + PPM_HEAD) throw tooLarge(`${file.size} bytes`);
    return readPpm(new Uint8Array(await file.arrayBuffer()));
  }
  const image = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (!image)
    throw new MediaError(`'${name}' is no picture that this browser reads; give a JPEG, PNG or WebP`);
  try {
    if (image.width * image.height > maxPixels) throw tooLarge(`${image.width} x ${image.height} pixels`);
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context?.drawImage(image, 0, 0);
    const pixels = context?.getImageData(0, 0, image.width, image.height);
    if (!pixels) throw new RangeError("no canvas of this size");
    return pictureOfRgba(pixels.data, pixels.width, pixels.height);
  } catch (error) {
    if (error instanceof MediaError) throw error;
    throw new MediaError(`the browser has no room for '${name}'; scale it down`);
  } finally {
    image.close();
  }
}

/** The recording in a file, of so many seconds at most where the browser decodes it. Throws MediaError. */
export async function readClip(file: Blob, name: string, maxSeconds: number): Promise<Clip> {
  if (file.size > MOST_BYTES) {
    throw new MediaError(`'${name}' has ${file.size} bytes, the limit is ${MOST_BYTES}; cut it into parts`);
  }
  const bytes = await file.arrayBuffer();
  if (isWav(new Uint8Array(bytes))) return readWav(new Uint8Array(bytes));
  const context = new OfflineAudioContext(1, 1, DECODED_RATE);
  const decoded = await context.decodeAudioData(bytes).catch(() => null);
  if (!decoded)
    throw new MediaError(`'${name}' is no recording that this browser reads; give a WAV, MP3, Ogg or FLAC`);
  if (decoded.duration > maxSeconds) {
    throw new MediaError(
      `'${name}' lasts ${decoded.duration.toFixed(1)} s, the limit of this model is ${maxSeconds}; cut it into parts`,
    );
  }
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, at) =>
    decoded.getChannelData(at).slice(),
  );
  return { channels, rate: decoded.sampleRate };
}
