// The smallest app: a question, a picture, a recording, an answer as it comes.
plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

// The package of `phirt export --target android`; it goes into the app's assets as it is.
val phirtPackage = providers.gradleProperty("phirt.package").orElse("model")

android {
    namespace = "dev.phirt.app"
    compileSdk = 35

    defaultConfig {
        applicationId = "dev.phirt.app"
        minSdk = 28
        targetSdk = 35
        versionCode = 1
        versionName = "0.1"
    }
    androidResources { noCompress += listOf("onnx", "data", "json") }
    sourceSets["main"].assets.srcDir(layout.buildDirectory.dir("model-assets"))
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

val copyModel by tasks.registering(Sync::class) {
    from(phirtPackage.map { rootProject.file(it) })
    into(layout.buildDirectory.dir("model-assets/model"))
}

tasks.named("preBuild") { dependsOn(copyModel) }

dependencies { implementation(project(":phirt")) }
