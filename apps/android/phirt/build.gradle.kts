// The library: Kotlin over the C core, and onnxruntime from its AAR.
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

// The AAR's headers and libraries, unpacked for CMake; the same AAR is what the app ships.
val onnxruntime: Configuration by configurations.creating
val onnxruntimeFolder = layout.buildDirectory.dir("onnxruntime")
val unpackOnnxruntime by tasks.registering(Sync::class) {
    from({ onnxruntime.map { zipTree(it) } })
    into(onnxruntimeFolder)
}

android {
    namespace = "dev.phirt"
    compileSdk = 35
    ndkVersion = "27.2.12479018"

    defaultConfig {
        minSdk = 26
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        externalNativeBuild {
            cmake {
                arguments += "-DONNXRUNTIME_AAR=${onnxruntimeFolder.get().asFile.path}"
                arguments += "-DANDROID_STL=c++_static" // libphirt_jni is the only C++ of this library
                targets += "phirt_jni"
            }
        }
        consumerProguardFiles("consumer-rules.pro")
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    onnxruntime("com.microsoft.onnxruntime:onnxruntime-android:1.29.0@aar")
    api("com.microsoft.onnxruntime:onnxruntime-android:1.29.0")
}

tasks.matching { it.name.startsWith("configureCMake") }.configureEach { dependsOn(unpackOnnxruntime) }
