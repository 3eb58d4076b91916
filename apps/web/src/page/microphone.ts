/**
 * A recording by the microphone: samples as they come, at the rate of the sound card, without a codec between.
 *
 * Knows the browser's sound. Knows nothing of models.
 */
import { MediaError } from "../host/errors.js";
import type { Clip } from "../host/sound.js";

export class Recording {
  private readonly blocks: Float32Array[] = [];
  private length = 0;

  private constructor(
    private readonly stream: MediaStream,
    private readonly context: AudioContext,
    maxSeconds: number,
    onFull: () => void,
    node: AudioWorkletNode,
  ) {
    const most = maxSeconds * context.sampleRate;
    node.port.onmessage = ({ data }: MessageEvent<Float32Array>) => {
      if (this.length + data.length > most) {
        onFull();
        return;
      }
      this.blocks.push(data);
      this.length += data.length;
    };
  }

  /** Asks for the microphone and begins. `onFull` is called when the recording is as long as it may be. */
  static async begin(maxSeconds: number, onFull: () => void): Promise<Recording> {
    const constraints = {
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
    };
    const stream = await navigator.mediaDevices?.getUserMedia(constraints).catch(() => null);
    if (!stream)
      throw new MediaError("there is no microphone that this page may use; allow it, or choose a file");
    let context: AudioContext | null = null;
    try {
      context = new AudioContext();
      await context.audioWorklet.addModule(new URL("./recorder_worklet.js", import.meta.url));
      const node = new AudioWorkletNode(context, "phirt-recorder", { numberOfOutputs: 0 });
      const recording = new Recording(stream, context, maxSeconds, onFull, node);
      context.createMediaStreamSource(stream).connect(node);
      await context.resume();
      return recording;
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      await context?.close();
      throw error;
    }
  }

  /** Ends it, and gives the microphone back. */
  async end(): Promise<Clip> {
    for (const track of this.stream.getTracks()) track.stop();
    const rate = this.context.sampleRate;
    await this.context.close();
    const samples = new Float32Array(this.length);
    let at = 0;
    for (const block of this.blocks) {
      samples.set(block, at);
      at += block.length;
    }
    return { channels: [samples], rate };
  }
}
