// Open this folder in Android Studio, or: gradle :app:assembleDebug -Pphirt.package=FOLDER
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "phirt-android"
include(":phirt", ":app")
