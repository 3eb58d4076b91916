/**
 * The worker with the model, as the page sees it: one request at a time, answers as they come.
 *
 * Knows `protocol`. Knows nothing of what is shown.
 */
import type { CaseReport } from "../host/golden.js";
import type { Picture } from "../host/picture.js";
import type { Result } from "../host/reply.js";
import type { Clip } from "../host/sound.js";
import type { Answer, ModelInfo, OpenOptions, Progress, Request, Settings } from "./protocol.js";

type End = Extract<Answer, { kind: "ready" | "done" | "checked" }>;

export class HostWorker {
  private readonly worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });

  open(options: OpenOptions, onProgress: (progress: Progress) => void): Promise<ModelInfo> {
    return this.request({ kind: "open", options }, "ready", (answer) => {
      if (answer.kind === "progress") onProgress(answer.progress);
    }).then((end) => end.info);
  }

  send(
    text: string,
    images: readonly Picture[],
    audio: readonly Clip[],
    settings: Settings,
    onPiece: (text: string) => void,
  ): Promise<Result> {
    return this.request({ kind: "send", text, images, audio, settings }, "done", (answer) => {
      if (answer.kind === "piece") onPiece(answer.text);
    }).then((end) => end.result);
  }

  check(onCase: (report: CaseReport) => void): Promise<{ identical: number; all: number }> {
    return this.request({ kind: "check" }, "checked", (answer) => {
      if (answer.kind === "case") onCase(answer.report);
    });
  }

  stop(): void {
    this.post({ kind: "stop" });
  }

  reset(): void {
    this.post({ kind: "reset" });
  }

  private request<K extends End["kind"]>(
    request: Request,
    end: K,
    onAnswer: (answer: Answer) => void,
  ): Promise<Extract<End, { kind: K }>> {
    return new Promise((resolve, reject) => {
      this.worker.onmessage = ({ data }: MessageEvent<Answer>) => {
        if (data.kind === end) resolve(data as Extract<End, { kind: K }>);
        else if (data.kind === "error") reject(new Error(data.message));
        else onAnswer(data);
      };
      this.worker.onerror = (event) => reject(new Error(event.message || "the worker cannot start"));
      this.post(request);
    });
  }

  private post(request: Request): void {
    this.worker.postMessage(request);
  }
}
