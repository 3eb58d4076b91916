// The smallest app: what was said, a line to ask in, a picture, a recording, and a way to stop.

import PhotosUI
import SwiftUI

@main
struct PhirtApp: App {
    @StateObject private var conversation = Conversation()

    var body: some Scene {
        WindowGroup { ConversationView(conversation: conversation) }
    }
}

struct ConversationView: View {
    @ObservedObject var conversation: Conversation
    @State private var question = ""
    @State private var picture: PhotosPickerItem?

    var body: some View {
        VStack {
            ScrollView {
                Text(conversation.said)
                    .frame(maxWidth: .infinity, alignment: .leading)
                    .textSelection(.enabled)
            }
            TextField("Ask something", text: $question)
                .textFieldStyle(.roundedBorder)
                .onSubmit(send)
            HStack {
                Button("Send", action: send).disabled(conversation.isBusy)
                PhotosPicker("Picture", selection: $picture, matching: .images)
                Button(conversation.isRecording ? "Done" : "Record", action: conversation.toggleRecording)
                Button("Stop", action: conversation.stop)
            }
        }
        .padding()
        .task { await conversation.open() }
        .onChange(of: picture) { item in
            Task {
                guard let data = try? await item?.loadTransferable(type: Data.self) else { return }
                conversation.attach(picture: data)
            }
        }
    }

    private func send() {
        let text = question
        question = ""
        Task { await conversation.send(text) }
    }
}
