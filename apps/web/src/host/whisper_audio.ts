/** The kind `whisper_audio`: log-mel windows of 30 seconds. Formulas and their sources are in phirt/encoders/whisper_audio.py. */
import type { AudioKind, Prepared } from "./encoder_kind.js";
import type { Field } from "./fields.js";
import { evenly, filtered, PowerSpectrum } from "./spectrum.js";

const FFT = 400;
const HOP = 160;
const WINDOW = 480000;
const FRAMES = 3000;
const BINS = 201;
const SILENCE = -10; // log10 of the least power that counts

export class WhisperAudio implements AudioKind {
  readonly rates = [16000];
  private readonly mels: number;
  private readonly framesPerToken: number;
  private readonly padding: "kept" | "dropped" | "none";
  private readonly filters: Float64Array; // [bins, mels]

  constructor(constants: Field) {
    this.mels = constants.get("num_mels").integer(1, 512);
    this.framesPerToken = constants.get("frames_per_token").integer(1, FRAMES);
    this.padding = constants.get("padding").oneOf(["kept", "dropped", "none"], "kept");
    // Triangles of area 1 between neighbours on Slaney's scale up to 8000 Hz.
    const edges = evenly(0, melOf(8000), this.mels + 2).map(frequencyOf);
    const bins = evenly(0, 8000, BINS);
    this.filters = new Float64Array(BINS * this.mels);
    for (let bin = 0; bin < BINS; ++bin) {
      for (let m = 0; m < this.mels; ++m) {
        const rising = (bins[bin] - edges[m]) / (edges[m + 1] - edges[m]);
        const falling = (edges[m + 2] - bins[bin]) / (edges[m + 2] - edges[m + 1]);
        const height = 2 / (edges[m + 2] - edges[m]);
        this.filters[bin * this.mels + m] = Math.max(0, Math.min(rising, falling)) * height;
      }
    }
  }

  prepare(samples: Float32Array): Prepared {
    const perWindow = Math.ceil(FRAMES / this.framesPerToken);
    const numTokens = this.tokensOf(samples.length, perWindow);
    const runs: Prepared["runs"][number][] = [];
    for (let start = 0, left = numTokens; start < samples.length; start += WINDOW, left -= perWindow) {
      const isLast = start + WINDOW >= samples.length;
      // Padding that is not computed is left out of the last window.
      const frames =
        this.padding === "none" && isLast ? Math.min(left * this.framesPerToken, FRAMES) : FRAMES;
      const data = this.logMel(samples.subarray(start, start + WINDOW), frames);
      runs.push({ input_features: { dtype: "float32", shape: [1, this.mels, frames], data } });
    }
    return { numTokens, runs };
  }

  private tokensOf(count: number, perWindow: number): number {
    const rest = count % WINDOW;
    const frames = Math.ceil(rest / HOP);
    const ofRest = this.padding === "kept" ? perWindow : Math.ceil(frames / this.framesPerToken);
    return Math.trunc(count / WINDOW) * perWindow + (rest ? ofRest : 0);
  }

  /** [mels, frames] of one window; frames of 25 ms every 10 ms around their middle, the ends mirrored. */
  private logMel(samples: Float32Array, frames: number): Float32Array {
    const { mels } = this;
    const levels = new Float64Array(frames * mels).fill(SILENCE);
    const spectrum = new PowerSpectrum(FFT);
    const [frame, power, sums] = [FFT, BINS, mels].map((count) => new Float64Array(count)) as [
      Float64Array,
      Float64Array,
      Float64Array,
    ];
    const hann = Float64Array.from(
      { length: FFT },
      (_, at) => 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / FFT),
    );
    let loudest = SILENCE; // of all frames, also those that are not asked for
    for (let f = 0; f < FRAMES && f * HOP - FFT / 2 < samples.length; ++f) {
      for (let i = 0; i < FFT; ++i) {
        const place = f * HOP + i - FFT / 2;
        const at = place < 0 ? -place : place >= WINDOW ? 2 * WINDOW - 2 - place : place;
        frame[i] = at < samples.length ? samples[at] * hann[i] : 0;
      }
      spectrum.of(frame, power);
      filtered(power, this.filters, sums, 0, BINS);
      for (let m = 0; m < mels; ++m) {
        const level = Math.log10(Math.max(sums[m], 1e-10));
        loudest = Math.max(loudest, level);
        if (f < frames) levels[m * frames + f] = level;
      }
    }
    return Float32Array.from(levels, (level) => (Math.max(level, loudest - 8) + 4) / 4);
  }
}

function melOf(frequency: number): number {
  return frequency < 1000 ? (frequency * 3) / 200 : 15 + (27 * Math.log(frequency / 1000)) / Math.log(6.4);
}

function frequencyOf(mel: number): number {
  return mel < 15 ? (mel * 200) / 3 : 1000 * Math.exp(((mel - 15) * Math.log(6.4)) / 27);
}
