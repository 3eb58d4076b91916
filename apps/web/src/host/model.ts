/**
 * An opened package: its manifest, tokenizer, rendering, and a session of its decoder. Encoders open when they are needed.
 */
import type { InferenceSession } from "onnxruntime-common";
import { Chat } from "./chat.js";
import { Decoder } from "./decoder.js";
import { checkSizes, type PackageFiles, readText } from "./files.js";
import { cacheNames } from "./graphs.js";
import { HOST, MANIFEST, MAX_MANIFEST, Manifest } from "./manifest.js";
import { MediaEncoders } from "./media.js";
import { Rendering } from "./rendering.js";
import type { Runtime } from "./runtime.js";
import { Tokenizer } from "./tokenizer.js";

const MAX_HOST = 4 << 20;
const MAX_TOKENIZER = 256 << 20;

export class Model {
  private constructor(
    readonly manifest: Manifest,
    readonly tokenizer: Tokenizer,
    private readonly rendering: Rendering,
    private readonly media: MediaEncoders,
    private readonly runtime: Runtime,
    private readonly session: InferenceSession,
  ) {}

  /**
   * Opens a package.
   *
   * Throws PackageError for one that is damaged or not made for this library; RuntimeError, MemoryError where
   * onnxruntime cannot open its decoder.
   */
  static async open(files: PackageFiles, runtime: Runtime): Promise<Model> {
    const manifest = new Manifest(await readText(files, MANIFEST, MAX_MANIFEST));
    await checkSizes(files, manifest);
    const text = await readText(files, manifest.tokenizer, MAX_TOKENIZER);
    const tokenizer = new Tokenizer(text, manifest.tokenizer, manifest.geometry.vocabSize);
    const rendering = new Rendering(await readText(files, HOST, MAX_HOST), tokenizer);
    const media = new MediaEncoders(manifest, files, runtime);
    const resident = cacheNames(manifest.geometry.numLayers).map((one) => one.present);
    const session = await runtime.open(manifest.decoder, files, resident);
    return new Model(manifest, tokenizer, rendering, media, runtime, session);
  }

  /** A conversation with an empty history. Throws ArgumentError for a system message where the model takes none. */
  chat(options: { readonly system?: string } = {}): Chat {
    const decoder = new Decoder(this.session, this.runtime, this.manifest);
    return new Chat(this.manifest, this.tokenizer, this.rendering, this.media, decoder, options.system);
  }

  /** Gives the memory of the encoders back; they open again when they are needed. */
  releaseEncoders(): Promise<void> {
    return this.media.release();
  }

  /** Gives all memory back. No chat of it can answer any more. */
  async close(): Promise<void> {
    await this.media.release();
    await this.session.release();
  }
}
