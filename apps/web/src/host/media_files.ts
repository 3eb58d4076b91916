/**
 * The two plainest file formats that there are, PPM and WAV: what golden vectors are written in, and what is read here
 * to the last bit instead of by a browser, which would resample.
 */
import { MediaError } from "./errors.js";
import type { Picture } from "./picture.js";
import type { Clip } from "./sound.js";

/** A binary PPM with 8 bits a colour. */
export function readPpm(bytes: Uint8Array): Picture {
  const head = String.fromCharCode(...bytes.subarray(0, 100));
  const found = /^P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s/.exec(head);
  const [width, height] = [Number(found?.[1]), Number(found?.[2])];
  const rgb = bytes.subarray(found?.[0].length ?? 0);
  if (!found || rgb.length !== 3 * width * height) {
    throw new MediaError("the picture is no whole PPM file of 8 bits; give a complete one");
  }
  return { width, height, rgb };
}

const PCM = 1;
const FLOAT = 3;
const EXTENSIBLE = 0xfffe;

export function isWav(bytes: Uint8Array): boolean {
  return tag(bytes, 0) === "RIFF" && tag(bytes, 8) === "WAVE";
}

/** WAV with whole numbers of 8, 16, 24 or 32 bits, or floats of 32. */
export function readWav(bytes: Uint8Array): Clip {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let format: { kind: number; channels: number; rate: number; bits: number } | null = null;
  for (let at = 12; isWav(bytes) && at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    const end = Math.min(at + 8 + size, bytes.length);
    if (tag(bytes, at) === "fmt " && end - at >= 24) {
      const kind = view.getUint16(at + 8, true);
      format = {
        kind: kind === EXTENSIBLE && end - at >= 34 ? view.getUint16(at + 32, true) : kind,
        channels: view.getUint16(at + 10, true),
        rate: view.getUint32(at + 12, true),
        bits: view.getUint16(at + 22, true),
      };
    } else if (tag(bytes, at) === "data" && format) {
      return samplesOf(new DataView(view.buffer, view.byteOffset + at + 8, end - at - 8), format);
    }
    at += 8 + size + (size % 2);
  }
  throw new MediaError("the recording is no whole WAV file; give a complete one");
}

function samplesOf(
  data: DataView,
  format: { kind: number; channels: number; rate: number; bits: number },
): Clip {
  const { kind, channels, rate, bits } = format;
  const read = readers(data)[`${kind} ${bits}`];
  if (!read || channels < 1 || channels > 64) {
    throw new MediaError(
      `the recording is a WAV file of kind ${kind} with ${bits} bits and ${channels} channels, accepted: whole numbers ` +
        "of 8 to 32 bits or floats of 32, 1 to 64 channels; convert it",
    );
  }
  const width = bits / 8;
  const length = Math.trunc(data.byteLength / width / channels);
  return {
    rate,
    channels: Array.from({ length: channels }, (_, channel) =>
      Float32Array.from({ length }, (_, at) => read((at * channels + channel) * width)),
    ),
  };
}

function readers(data: DataView): Readonly<Record<string, (at: number) => number>> {
  return {
    [`${PCM} 8`]: (at) => (data.getUint8(at) - 128) / 2 ** 7,
    [`${PCM} 16`]: (at) => data.getInt16(at, true) / 2 ** 15,
    [`${PCM} 24`]: (at) => (data.getInt16(at + 1, true) * 2 ** 8 + data.getUint8(at)) / 2 ** 23,
    [`${PCM} 32`]: (at) => data.getInt32(at, true) / 2 ** 31,
    [`${FLOAT} 32`]: (at) => data.getFloat32(at, true),
  };
}

function tag(bytes: Uint8Array, at: number): string {
  return String.fromCharCode(...bytes.subarray(at, at + 4));
}
