// Pictures as the system decodes them, as red, green and blue bytes; the microphone, as samples.

import AVFoundation
import UIKit

/// An upright picture; what is transparent lies on white.
struct Pixels {
    let rgb: [UInt8]
    let width: Int
    let height: Int

    init?(_ data: Data) {
        guard let image = UIImage(data: data) else { return nil }
        let width = Int(image.size.width * image.scale), height = Int(image.size.height * image.scale)
        var rgba = [UInt8](repeating: 255, count: 4 * width * height)
        let drawn = rgba.withUnsafeMutableBytes { bytes -> Bool in
            guard
                let space = CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                    space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
                )
            else { return false }
            // UIKit draws it upright, whichever way the camera was held.
            context.translateBy(x: 0, y: CGFloat(height))
            context.scaleBy(x: 1, y: -1)
            UIGraphicsPushContext(context)
            image.draw(in: CGRect(x: 0, y: 0, width: width, height: height))
            UIGraphicsPopContext()
            return true
        }
        guard drawn else { return nil }
        self.width = width
        self.height = height
        rgb = (0..<width * height).flatMap { [rgba[4 * $0], rgba[4 * $0 + 1], rgba[4 * $0 + 2]] }
    }
}

/// What the microphone hears between `start` and `stop`, mono.
final class Recorder: @unchecked Sendable {
    private let engine = AVAudioEngine()
    private let lock = NSLock()
    private var samples: [Float] = []

    func start() throws {
        try AVAudioSession.sharedInstance().setCategory(.record, mode: .measurement)
        try AVAudioSession.sharedInstance().setActive(true)
        samples = []
        let input = engine.inputNode
        input.installTap(onBus: 0, bufferSize: 4096, format: input.outputFormat(forBus: 0)) { [self] buffer, _ in
            guard let channel = buffer.floatChannelData?[0] else { return }
            lock.lock()
            samples.append(contentsOf: UnsafeBufferPointer(start: channel, count: Int(buffer.frameLength)))
            lock.unlock()
        }
        try engine.start()
    }

    func stop() -> (samples: [Float], rate: Int) {
        let rate = Int(engine.inputNode.outputFormat(forBus: 0).sampleRate)
        engine.inputNode.removeTap(onBus: 0)
        engine.stop()
        lock.lock()
        defer { lock.unlock() }
        return (samples, rate)
    }
}
