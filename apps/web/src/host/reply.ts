/** One answer: read as it comes, or waited for; and what is known of it at its end. */

export type FinishReason =
  | "stop" // the model ended its answer
  | "length" // maxNewTokens were made
  | "context" // the context is full
  | "cancelled"; // by its signal, or by whoever read it

export interface Result {
  readonly text: string;
  readonly ids: readonly number[];
  readonly promptIds: readonly number[];
  /** Of the prompt, that were not computed again. */
  readonly cachedTokens: number;
  /** By the package's rules; "none" for the base weights. */
  readonly adapter: string;
  readonly finishReason: FinishReason;
  readonly seconds: { readonly media: number; readonly prefill: number; readonly decode: number };
}

/**
 * Pieces of the answer, whole characters each; they are made as they are read. Leaving the loop ends the answer, which
 * then is part of the history as far as it came.
 */
export class Reply implements AsyncIterable<string> {
  private ended: Result | null = null;
  private failure: { readonly error: unknown } | null = null;

  constructor(private readonly pieces: AsyncGenerator<string, Result>) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void> {
    if (this.failure) throw this.failure.error; // whoever asks again is told the same
    try {
      for (;;) {
        const { done, value } = await this.next();
        if (done) {
          this.ended ??= value;
          return;
        }
        yield value;
      }
    } finally {
      if (!this.ended && !this.failure)
        this.ended = (await this.pieces.return(undefined as never)).value as Result;
    }
  }

  private async next(): Promise<IteratorResult<string, Result>> {
    try {
      return await this.pieces.next();
    } catch (error) {
      this.failure = { error };
      throw error;
    }
  }

  /** Reads what is left, and returns what is known at the end. */
  async finish(): Promise<Result> {
    for await (const _ of this);
    return this.ended as Result;
  }

  /** The whole answer as text. */
  async text(): Promise<string> {
    return (await this.finish()).text;
  }
}
