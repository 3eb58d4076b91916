/**
 * Media of a conversation: checked and prepared when they are given, encoded when they are needed, under each projector
 * once.
 *
 * Knows limits of the manifest and runs encoders. Knows nothing of turns.
 */
import type { InferenceSession, Tensor } from "onnxruntime-common";
import type { AudioKind, Detail, ImageKind, Prepared } from "./encoder_kind.js";
import { openAudioKind, openImageKind } from "./encoders.js";
import { ArgumentError, MediaError, PackageError } from "./errors.js";
import type { PackageFiles } from "./files.js";
import type { EncoderSpec, Manifest, Modality, Rule } from "./manifest.js";
import type { Picture } from "./picture.js";
import type { Media } from "./rendering.js";
import { int64, type Runtime, run } from "./runtime.js";
import { type Clip, mixToMono, resample } from "./sound.js";

const SILENCE = 3.16227766e-5; // -90 dBFS: less than one step of a 16-bit recording
const [MIN_RATE, MAX_RATE, MAX_CHANNELS] = [8000, 384000, 64];
const NO_ROWS = new Float32Array(0);

/** One picture or recording of a conversation. */
export interface Attachment {
  readonly encoder: EncoderSpec;
  readonly prepared: Prepared;
  /** Features by projector, as far as they were computed. */
  readonly features: Map<number, Float32Array>;
}

/** Samples as they are at a rate that the kind takes, resampled to its first one at another. */
export function prepareSamples(kind: AudioKind, samples: Float32Array, rate: number): Prepared {
  if (kind.rates.includes(rate)) return kind.prepare(samples, rate);
  return kind.prepare(resample(samples, rate, kind.rates[0]), kind.rates[0]);
}

export class MediaEncoders {
  private readonly image: ImageKind | null;
  private readonly audio: AudioKind | null;
  private readonly sessions = new Map<EncoderSpec, Promise<InferenceSession>>();

  constructor(
    private readonly manifest: Manifest,
    private readonly files: PackageFiles,
    private readonly runtime: Runtime,
  ) {
    const [image, audio] = [manifest.encoderFor("image"), manifest.encoderFor("audio")];
    this.image = image ? openImageKind(image) : null;
    this.audio = audio ? openAudioKind(audio) : null;
  }

  /** Throws MediaError for a picture that the model cannot take. */
  prepareImage(picture: Picture, detail: Detail): Attachment {
    const encoder = this.encoder("image", "images");
    const { width, height, rgb } = picture;
    const limit = this.manifest.limits.imagePixels;
    const isSize = (side: number) => Number.isSafeInteger(side) && side > 0;
    if (!isSize(width) || !isSize(height))
      throw new MediaError("the picture has no pixels; give a complete one");
    if (width * height > limit) {
      throw new MediaError(
        `the picture has ${width} x ${height} pixels, the limit is ${limit}; scale it down`,
      );
    }
    if (rgb.length !== 3 * width * height) {
      throw new ArgumentError(`rgb has ${rgb.length} bytes, accepted: 3 x ${width} x ${height}`);
    }
    if (!["low", "auto", "high"].includes(detail)) {
      throw new ArgumentError(`detail is '${String(detail)}', accepted: low, auto, high`);
    }
    return { encoder, prepared: (this.image as ImageKind).prepare(picture, detail), features: new Map() };
  }

  /** The same for a recording. */
  prepareAudio(clip: Clip): Attachment {
    const encoder = this.encoder("audio", "audio");
    const samples = this.checkedSamples(clip);
    const prepared = prepareSamples(this.audio as AudioKind, samples, clip.rate);
    return { encoder, prepared, features: new Map() };
  }

  /** What stands for an attachment in a prompt, before it is encoded. */
  measured(attachment: Attachment): Media {
    const { encoder, prepared } = attachment;
    return { placeholder: encoder.placeholder, numTokens: prepared.numTokens, rows: NO_ROWS };
  }

  /** The same with its features, under the projector of the rule; null where `isStopped` said so before a run. */
  async encoded(
    attachment: Attachment,
    rule: Rule,
    isStopped: () => Promise<boolean>,
  ): Promise<Media | null> {
    const { encoder, prepared, features } = attachment;
    const projector = rule.projectors.get(encoder.name) ?? 0;
    let rows = features.get(projector);
    if (rows === undefined) {
      const made = await this.run(encoder, prepared, projector, isStopped);
      if (made === null) return null;
      rows = made;
      features.set(projector, rows);
    }
    return { placeholder: encoder.placeholder, numTokens: prepared.numTokens, rows };
  }

  /** Gives the memory of the encoders back; they open again when they are needed. */
  async release(): Promise<void> {
    const sessions = [...this.sessions.values()];
    this.sessions.clear();
    for (const session of await Promise.all(sessions)) await session.release();
  }

  private async run(
    encoder: EncoderSpec,
    prepared: Prepared,
    projector: number,
    isStopped: () => Promise<boolean>,
  ): Promise<Float32Array | null> {
    const { ort } = this.runtime;
    if (await isStopped()) return null; // before the encoder is opened, which takes longest
    const session = await this.session(encoder);
    const [output] = encoder.graph.outputs;
    const hidden = this.manifest.geometry.hiddenSize;
    const wanted = prepared.numTokens * hidden;
    const rows = new Float32Array(wanted);
    let filled = 0;
    for (const inputs of prepared.runs) {
      if (await isStopped()) return null;
      const feeds: Record<string, Tensor> = {};
      for (const [name, { dtype, data, shape }] of Object.entries(inputs)) {
        feeds[name] = new ort.Tensor(dtype as "float32", data as Float32Array, shape);
      }
      if (encoder.graph.inputs.some((one) => one.name === "projector"))
        feeds.projector = int64(ort, [projector]);
      const outputs = await run(session, feeds, { [output.name]: null }, `the encoder '${encoder.name}'`);
      const tensor = outputs[output.name];
      const more = (await tensor.getData()) as Float32Array;
      if (tensor.type !== "float32" || more.length % hidden) {
        throw new PackageError(
          `${encoder.graph.file} gives no float32 rows of ${hidden}; export the package again`,
        );
      }
      rows.set(more.subarray(0, Math.min(more.length, wanted - filled)), filled);
      filled += more.length;
      tensor.dispose();
    }
    if (filled < wanted) {
      throw new PackageError(
        `the encoder '${encoder.name}' gave ${filled / hidden} rows instead of ${prepared.numTokens}; export the ` +
          "package again",
      );
    }
    return rows;
  }

  private session(encoder: EncoderSpec): Promise<InferenceSession> {
    let session = this.sessions.get(encoder);
    if (session === undefined) {
      session = this.runtime.open(encoder.graph, this.files, []);
      this.sessions.set(encoder, session);
      // One that could not be opened is tried again the next time.
      session.catch(() => this.sessions.delete(encoder));
    }
    return session;
  }

  private encoder(modality: Modality, what: string): EncoderSpec {
    const encoder = this.manifest.encoderFor(modality);
    if (encoder) return encoder;
    const name = this.manifest.name;
    throw new MediaError(
      `the model '${name}' takes no ${what}; use one that was exported with an encoder for them`,
    );
  }

  private checkedSamples(clip: Clip): Float32Array {
    const { channels, rate } = clip;
    const [first] = channels;
    const limit = this.manifest.limits.audioSeconds;
    if (!(rate >= MIN_RATE && rate <= MAX_RATE)) {
      throw new MediaError(
        `the recording has ${rate} samples a second, accepted: ${MIN_RATE} to ${MAX_RATE}`,
      );
    }
    if (!first || channels.length > MAX_CHANNELS || channels.some((one) => one.length !== first.length)) {
      throw new MediaError(
        `the recording has ${channels.length} channels, accepted: 1 to ${MAX_CHANNELS} of one length`,
      );
    }
    if (!first.length) throw new MediaError("the recording holds no samples; give a complete recording");
    if (first.length > limit * rate) {
      const seconds = (first.length / rate).toFixed(1);
      throw new MediaError(
        `the recording lasts ${seconds} s, the limit of this model is ${limit}; cut it into parts`,
      );
    }
    const mono = mixToMono(channels);
    let loudest = 0;
    for (const sample of mono) {
      if (!Number.isFinite(sample))
        throw new MediaError("the recording holds samples that are no numbers; record it again");
      loudest = Math.max(loudest, Math.abs(sample));
    }
    if (loudest < SILENCE)
      throw new MediaError("the recording is silent: no sample reaches -90 dBFS; check it");
    return mono;
  }
}
