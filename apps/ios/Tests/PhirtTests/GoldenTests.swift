// The golden conversations of the package that PHIRT_PACKAGE names, through the Swift face.

import Foundation
import XCTest

@testable import Phirt

private struct Golden: Decodable {
    struct Case: Decodable {
        let name: String
        let system: String?
        let turns: [Turn]
    }

    struct Turn: Decodable {
        let text: String
        let image: String?
        let audio: String?
        let max_new_tokens: Int32
        let prompt_ids: [Int32]
        let sure: Bool  // else rounding may change the answer, and the prompt alone counts
        let ids: [Int32]
        let answer: String
        let adapter: String
    }

    let cases: [Case]
}

final class GoldenTests: XCTestCase {
    func testEveryConversation() throws {
        guard let path = ProcessInfo.processInfo.environment["PHIRT_PACKAGE"] else {
            throw XCTSkip("PHIRT_PACKAGE names no package")
        }
        let folder = URL(fileURLWithPath: path)
        let golden = try JSONDecoder().decode(
            Golden.self, from: Data(contentsOf: folder.appendingPathComponent("golden.json"))
        )
        let model = try PhirtModel(folder: folder)
        for known in golden.cases {
            let chat = try model.chat(system: known.system)
            for turn in known.turns {
                if let name = turn.image { try attachPicture(folder.appendingPathComponent(name), to: chat) }
                if let name = turn.audio { try attachRecording(folder.appendingPathComponent(name), to: chat) }
                var generation = Generation()
                generation.maxNewTokens = turn.max_new_tokens
                var streamed = ""
                let answer = try chat.send(turn.text, generation: generation) { piece in
                    streamed += piece
                    return true
                }
                XCTAssertEqual(answer.promptIds, turn.prompt_ids, known.name)
                XCTAssertEqual(streamed, answer.text, known.name)
                if turn.sure {
                    XCTAssertEqual(answer.ids, turn.ids, known.name)
                    XCTAssertEqual(answer.text, turn.answer, known.name)
                }
                XCTAssertEqual(answer.adapter, turn.adapter, known.name)
            }
        }
    }

    func testWhatIsNotThere() {
        XCTAssertThrowsError(try PhirtModel(folder: URL(fileURLWithPath: "/nowhere"))) { error in
            XCTAssertEqual((error as? PhirtError)?.kind, .bundle)
        }
    }

    private func attachPicture(_ file: URL, to chat: PhirtChat) throws {
        let bytes = [UInt8](try Data(contentsOf: file))
        var words: [String] = []
        var at = 0
        while words.count < 4 {
            let end = bytes[at...].firstIndex { $0 == 10 || $0 == 32 } ?? bytes.endIndex
            words.append(String(decoding: bytes[at..<end], as: UTF8.self))
            at = end + 1
        }
        try chat.addImage(rgb: Array(bytes[at...]), width: Int(words[1]) ?? 0, height: Int(words[2]) ?? 0)
    }

    private func attachRecording(_ file: URL, to chat: PhirtChat) throws {
        let bytes = [UInt8](try Data(contentsOf: file))
        let rate = Int(bytes[24]) | Int(bytes[25]) << 8 | Int(bytes[26]) << 16
        let samples = stride(from: 44, to: bytes.count - 1, by: 2).map { at in
            Float(Int16(bitPattern: UInt16(bytes[at]) | UInt16(bytes[at + 1]) << 8)) / 32768
        }
        try chat.addAudio(samples, rate: rate)
    }
}
