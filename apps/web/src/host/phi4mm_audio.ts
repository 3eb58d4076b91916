/** The kind `phi4mm_audio`: log-mel frames. Formulas and their sources are in phirt/encoders/phi4mm_audio.py. */
import type { AudioKind, Prepared } from "./encoder_kind.js";
import { MediaError } from "./errors.js";
import type { Field } from "./fields.js";
import { evenly, filtered, PowerSpectrum } from "./spectrum.js";

const BINS = 257;
const LAST_BIN = 245;
const HIGHEST = 7690; // Hz, where the last triangle ends

export class Phi4mmAudio implements AudioKind {
  readonly rates = [16000, 8000];
  private readonly mels: number;
  private readonly subsampling: number;
  private readonly filters: Float64Array; // [bins, mels]

  constructor(constants: Field) {
    this.mels = constants.get("num_mels").integer(1, 512);
    this.subsampling = constants.get("subsampling").integer(1, 64);
    constants.get("sample_rate").integer(16000, 16000);
    // Triangles of height 1, linear in mel(f) = 1127 ln(1 + f / 700).
    const frequencies = evenly(0, 8000, BINS);
    const step = (1127 * Math.log1p(HIGHEST / 700)) / (this.mels + 1);
    this.filters = new Float64Array(BINS * this.mels);
    for (let bin = 1; bin <= LAST_BIN; ++bin) {
      const mel = 1127 * Math.log1p(frequencies[bin] / 700);
      for (let m = 0; m < this.mels; ++m) {
        this.filters[bin * this.mels + m] = Math.max(1 - Math.abs(mel - step * (m + 1)) / step, 0);
      }
    }
  }

  prepare(samples: Float32Array, rate: number): Prepared {
    const [window, hop] = [Math.trunc(rate / 40), Math.trunc(rate / 100)];
    if (samples.length < window) {
      throw new MediaError(
        `the recording has ${samples.length} samples at ${rate} Hz; at least ${window} are needed (25 ms); record longer`,
      );
    }
    const frames = Math.trunc((samples.length - window) / hop) + 1;
    const size = (512 * rate) / 16000;
    const spectrum = new PowerSpectrum(size);
    const hamming = Float64Array.from(
      { length: window },
      (_, at) => 0.54 - 0.46 * Math.cos((2 * Math.PI * at) / (window - 1)),
    );
    const [frame, power, sums] = [window, size / 2 + 1, this.mels].map(
      (count) => new Float64Array(count),
    ) as [Float64Array, Float64Array, Float64Array];
    // At 8 kHz the bins from Nyquist up count as zero.
    const bins = Math.min(power.length - (rate === 8000 ? 1 : 0), LAST_BIN + 1);
    const mel = new Float32Array(frames * this.mels);
    for (let f = 0; f < frames; ++f) {
      for (let at = 0; at < window; ++at) {
        const previous = samples[f * hop + Math.max(at - 1, 0)];
        frame[at] = (samples[f * hop + at] - 0.97 * previous) * 32768 * hamming[at];
      }
      spectrum.of(frame, power);
      filtered(power, this.filters, sums, 1, bins);
      for (let m = 0; m < this.mels; ++m) mel[f * this.mels + m] = Math.log(Math.max(sums[m], 1));
    }
    return {
      numTokens: Math.ceil(frames / this.subsampling),
      runs: [{ audio_embeds: { dtype: "float32", shape: [1, frames, this.mels], data: mel } }],
    };
  }
}
