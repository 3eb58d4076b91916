/** Hands the samples of a microphone over, block by block, in the thread of sound. */

declare function registerProcessor(name: string, processor: unknown): void;
declare const AudioWorkletProcessor: new () => { readonly port: MessagePort };

class Recorder extends AudioWorkletProcessor {
  process(inputs: readonly (readonly Float32Array[])[]): boolean {
    const [channel] = inputs[0] ?? [];
    if (channel?.length) this.port.postMessage(channel.slice());
    return true;
  }
}

registerProcessor("phirt-recorder", Recorder);
