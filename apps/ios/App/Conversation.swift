// One conversation with the package in the app's bundle (a folder `model`), for a view to show.

import Phirt
import SwiftUI

@MainActor
final class Conversation: ObservableObject {
    @Published private(set) var said = ""
    @Published private(set) var isBusy = true
    @Published private(set) var isRecording = false
    private var chat: PhirtChat?
    private let recorder = Recorder()

    func open() async {
        guard chat == nil, let folder = Bundle.main.url(forResource: "model", withExtension: nil) else {
            return show("Put a package of phirt into the app as the folder 'model'.\n")
        }
        do {
            // Reading a model takes a second: not here.
            let model = try await Task.detached { try PhirtModel(folder: folder) }.value
            chat = try model.chat()
            show("\(model.info.name) is ready.\n")
            isBusy = false
        } catch {
            show("\(error.localizedDescription)\n")
        }
    }

    func send(_ text: String) async {
        guard let chat, !isBusy else { return }
        isBusy = true
        show("\n> \(text)\n")
        do {
            for try await piece in chat.stream(text) { show(piece) }
            show("\n")
        } catch {
            show("\(error.localizedDescription)\n")
        }
        isBusy = false
    }

    func stop() { chat?.cancel() }

    func attach(picture: Data) {
        guard let pixels = Pixels(picture) else { return show("[no picture that can be read]\n") }
        attempt("a picture") { try $0.addImage(rgb: pixels.rgb, width: pixels.width, height: pixels.height) }
    }

    func toggleRecording() {
        if isRecording {
            isRecording = false
            let (samples, rate) = recorder.stop()
            attempt("a recording") { try $0.addAudio(samples, rate: rate) }
            return
        }
        do {
            try recorder.start()
            isRecording = true
        } catch {
            show("\(error.localizedDescription)\n")
        }
    }

    private func attempt(_ what: String, _ attach: (PhirtChat) throws -> Void) {
        guard let chat else { return }
        do {
            try attach(chat)
            show("[\(what) is attached]\n")
        } catch {
            show("\(error.localizedDescription)\n")
        }
    }

    private func show(_ text: String) { said += text }
}
