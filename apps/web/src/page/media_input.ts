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

/** Whether a file is taken for a picture or for a recording. */
export function kindOf(file: File): "image" | "audio" | null {
  if (file.type.startsWith("image/") || file.name.endsWith(".ppm")) return "image";
  return file.type.startsWith("audio/") || file.type.startsWith("video/") ? "audio" : null;
}

/** The picture in a file, upright. Throws MediaError. */
export async function readPicture(file: Blob, name: string): Promise<Picture> {
  if (name.endsWith(".ppm")) return readPpm(new Uint8Array(await file.arrayBuffer()));
  const image = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (!image)
    throw new MediaError(`'${name}' is no picture that this browser reads; give a JPEG, PNG or WebP`);
  try {
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new MediaError(`the browser has no room for '${name}'; scale it down`);
    context.drawImage(image, 0, 0);
    const { data, width, height } = context.getImageData(0, 0, image.width, image.height);
    return pictureOfRgba(data, width, height);
  } finally {
    image.close();
  }
}

/** The recording in a file. Throws MediaError. */
export async function readClip(file: Blob, name: string): Promise<Clip> {
  const bytes = await file.arrayBuffer();
  if (isWav(new Uint8Array(bytes))) return readWav(new Uint8Array(bytes));
  const context = new OfflineAudioContext(1, 1, DECODED_RATE);
  const decoded = await context.decodeAudioData(bytes).catch(() => null);
  if (!decoded)
    throw new MediaError(`'${name}' is no recording that this browser reads; give a WAV, MP3, Ogg or FLAC`);
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, at) =>
    decoded.getChannelData(at).slice(),
  );
  return { channels, rate: decoded.sampleRate };
}
