// swift-tools-version:5.9
import PackageDescription

// onnxruntime.xcframework of onnxruntime's releases (pod `onnxruntime-c`, 1.29 or newer) lies beside this file.
let package = Package(
    name: "Phirt",
    platforms: [.iOS(.v15), .macOS(.v13)],
    products: [.library(name: "Phirt", targets: ["Phirt"])],
    targets: [
        .binaryTarget(name: "onnxruntime", path: "onnxruntime.xcframework"),
        // The core of apps/native: `src` and `include` are links to it.
        .target(
            name: "CPhirt",
            dependencies: ["onnxruntime"],
            publicHeadersPath: "include",
            cxxSettings: [.define("PHIRT_VERSION", to: "\"0.1.0\""), .headerSearchPath("src")],
            linkerSettings: [.linkedLibrary("c++")]
        ),
        .target(name: "Phirt", dependencies: ["CPhirt"]),
        // PHIRT_PACKAGE=FOLDER swift test: the golden conversations of a package, on a Mac.
        .testTarget(name: "PhirtTests", dependencies: ["Phirt"]),
    ],
    cxxLanguageStandard: .cxx17
)
