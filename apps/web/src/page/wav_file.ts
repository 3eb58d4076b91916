/** A recording as a WAV file, for the page's own player. */
import type { Clip } from "../host/sound.js";

const HEAD = 44;

export function wavOf(clip: Clip): Blob {
  const [samples] = clip.channels;
  const view = new DataView(new ArrayBuffer(HEAD + 2 * samples.length));
  const tag = (at: number, text: string) => {
    for (let i = 0; i < text.length; ++i) view.setUint8(at + i, text.charCodeAt(i));
  };
  tag(0, "RIFF");
  view.setUint32(4, HEAD - 8 + 2 * samples.length, true);
  tag(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, clip.rate, true);
  view.setUint32(28, 2 * clip.rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  tag(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let at = 0; at < samples.length; ++at) {
    view.setInt16(HEAD + 2 * at, Math.round(Math.min(Math.max(samples[at], -1), 1) * 32767), true);
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}
