/**
 * A conversation: its history, and one answer at a time.
 *
 * Knows turns and media. Knows nothing of files or graphs.
 */
import { type Decoder, requireRoom } from "./decoder.js";
import type { Detail } from "./encoder_kind.js";
import { ArgumentError, ChatBusyError } from "./errors.js";
import type { Manifest, Rule } from "./manifest.js";
import type { Attachment, MediaEncoders } from "./media.js";
import type { Picture } from "./picture.js";
import type { Prompt, Rendering, Role, Turn } from "./rendering.js";
import { type FinishReason, Reply, type Result } from "./reply.js";
import { checkConfig, type GenerationConfig, Sampler } from "./sampling.js";
import type { Clip } from "./sound.js";
import { type Tokenizer, wellFormed } from "./tokenizer.js";
import { nextTask } from "./turns.js";

/** What may come with a question; settings that are not given are what the model's makers recommend. */
export interface SendOptions extends Partial<GenerationConfig> {
  readonly images?: readonly Picture[];
  readonly audio?: readonly Clip[];
  readonly detail?: Detail;
  /** Ends the answer within one step. */
  readonly signal?: AbortSignal;
}

interface Said {
  readonly role: Role;
  readonly text: string;
  readonly media: readonly Attachment[];
  readonly ids: readonly number[];
}

const MAX_NEW_TOKENS = 512;

export class Chat {
  private history: Said[] = [];
  private isBusy = false;

  constructor(
    private readonly manifest: Manifest,
    private readonly tokenizer: Tokenizer,
    private readonly rendering: Rendering,
    private readonly media: MediaEncoders,
    private readonly decoder: Decoder,
    system: string | undefined,
  ) {
    if (system !== undefined)
      this.history.push({ role: "system", text: wellFormed(system), media: [], ids: [] });
    // A template without a place for it is to be refused now and not with the first question.
    const said: Turn[] = system === undefined ? [] : [{ role: "system", text: "", media: [], ids: [] }];
    rendering.encode([...said, { role: "user", text: "", media: [], ids: [] }]);
  }

  /**
   * A question with its media; the answer becomes part of the history as far as it came. When it fails, the history
   * is as before.
   *
   * Throws ArgumentError for settings out of range, MediaError for media that the model cannot take. While it is read:
   * ContextError where the conversation is too long, ChatBusyError while another answer is being read.
   */
  send(text: string, options: SendOptions = {}): Reply {
    if (typeof text !== "string")
      throw new ArgumentError(`text is of the kind ${typeof text}, accepted: a string`);
    const { images = [], audio = [], detail = "auto", signal, ...settings } = options;
    const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
    const config: GenerationConfig = {
      maxNewTokens: MAX_NEW_TOKENS,
      seed: 0,
      ...this.manifest.generation,
      ...given,
    };
    checkConfig(config);
    const media = [
      ...images.map((picture) => this.media.prepareImage(picture, detail)),
      ...audio.map((clip) => this.media.prepareAudio(clip)),
    ];
    return new Reply(this.answer({ role: "user", text: wellFormed(text), media, ids: [] }, config, signal));
  }

  /** Forgets all turns; the system message stays. */
  reset(): void {
    this.requireIdle();
    this.history = this.history.filter((said) => said.role === "system");
    this.decoder.forget();
  }

  private requireIdle(): void {
    if (this.isBusy)
      throw new ChatBusyError("the chat is answering another request; wait for its end, or stop it");
  }

  private async *answer(
    said: Said,
    config: GenerationConfig,
    signal?: AbortSignal,
  ): AsyncGenerator<string, Result> {
    this.requireIdle();
    this.isBusy = true;
    const making = new Making();
    let hasFailed = false;
    try {
      const history = [...this.history, said];
      const has = (modality: string) =>
        history.some((one) => one.media.some((item) => item.encoder.modality === modality));
      const rule = this.manifest.ruleFor(has("image"), has("audio"));
      making.adapter = rule.adapter;
      const isStopped = async () => {
        await nextTask();
        return signal?.aborted ?? false;
      };
      const prompt = await making.timed("media", () => this.promptFor(history, rule, isStopped));
      if (prompt) {
        making.promptIds = prompt.ids;
        yield* this.generate(prompt, rule, config, making, isStopped);
      }
    } catch (error) {
      hasFailed = true;
      throw error;
    } finally {
      this.isBusy = false;
      if (!hasFailed)
        this.history.push(said, { role: "assistant", text: making.text, media: [], ids: making.ids });
      // biome-ignore lint/correctness/noUnsafeFinally: whoever leaves the loop is told as well what was made
      if (!hasFailed) return making.result();
    }
    return making.result();
  }

  /** The prompt with its media encoded; null where `isStopped` said so before all were. */
  private async promptFor(
    history: readonly Said[],
    rule: Rule,
    isStopped: () => Promise<boolean>,
  ): Promise<Prompt | null> {
    // What does not fit is refused before an encoder runs.
    const measured = history.map((said) => ({
      ...said,
      media: said.media.map((item) => this.media.measured(item)),
    }));
    requireRoom(this.rendering.encode(measured).ids.length, this.manifest.geometry.context);
    const turns: Turn[] = [];
    for (const said of history) {
      const media = [];
      for (const item of said.media) {
        const encoded = await this.media.encoded(item, rule, isStopped);
        if (encoded === null) return null;
        media.push(encoded);
      }
      turns.push({ ...said, media });
    }
    return this.rendering.encode(turns);
  }

  private async *generate(
    prompt: Prompt,
    rule: Rule,
    config: GenerationConfig,
    making: Making,
    isStopped: () => Promise<boolean>,
  ): AsyncGenerator<string, void> {
    const { geometry, eos, encoders } = this.manifest;
    const sampler = new Sampler(
      config,
      geometry.vocabSize,
      encoders.map((encoder) => encoder.placeholder),
    );
    for (const id of prompt.ids) sampler.hasOccurred(id);
    making.cachedTokens = this.decoder.reusable(prompt, rule.adapterId);
    let logits = await making.timed("prefill", () => this.decoder.prefill(prompt, rule.adapterId, isStopped));
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    while (logits && !(await isStopped())) {
      const id = sampler.choose(logits);
      if (eos.has(id)) {
        making.finishReason = "stop";
        return;
      }
      making.ids.push(id);
      const piece = utf8.decode(this.tokenizer.bytesOf(id), { stream: true });
      making.text += piece;
      if (piece) yield piece;
      if (making.ids.length === config.maxNewTokens) making.finishReason = "length";
      else if (this.decoder.length === geometry.context) making.finishReason = "context";
      if (making.finishReason !== "cancelled") return;
      logits = await making.timed("decode", () => this.decoder.decodeStep(id, isStopped));
    }
  }
}

/** A result in the making. */
class Making {
  text = "";
  ids: number[] = [];
  promptIds: readonly number[] = [];
  cachedTokens = 0;
  adapter = "none";
  finishReason: FinishReason = "cancelled"; // until something else ends it
  private readonly seconds = { media: 0, prefill: 0, decode: 0 };

  async timed<T>(what: keyof Result["seconds"], work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    try {
      return await work();
    } finally {
      this.seconds[what] += (performance.now() - begin) / 1000;
    }
  }

  result(): Result {
    const { text, ids, promptIds, cachedTokens, adapter, finishReason } = this;
    return {
      text,
      ids: [...ids],
      promptIds,
      cachedTokens,
      adapter,
      finishReason,
      seconds: { ...this.seconds },
    };
  }
}
