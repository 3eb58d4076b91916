# Where onnxruntime's C headers are: ONNXRUNTIME_INCLUDE, if it is given; the folder that
# apps/native/tools/fetch_onnxruntime.py has filled, if PHIRT_ONNXRUNTIME names it; or else the npm package that
# carries them (onnxruntime 1.29, MIT), which is brought into the build folder once: no package of PyPI has them.
# A library that is built with them runs with every later onnxruntime.
set(ONNXRUNTIME_INCLUDE "" CACHE PATH "The folder with onnxruntime_c_api.h")

set(_package com.github.asus4.onnxruntime)
set(_version 0.4.9)
set(_sha512 "064cf176e499f4891e0cfe90f25cf64c553689eee1492bd2ed921fccca28131a\
2ad02373267bae19a509ec8b288c182a3b8a2e0f58d76a1f0e63225b08ddbd16")
set(_inside "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers")

function(fetch_onnxruntime_headers folder)
  set(archive "${CMAKE_BINARY_DIR}/${_package}-${_version}.tgz")
  message(STATUS "onnxruntime's C headers: fetching ${_package} ${_version} (150 MB) from npm")
  find_program(NPM NAMES npm npm.cmd)  # which knows this machine's registry, proxy and certificates
  if(NOT NPM)
    message(FATAL_ERROR "onnxruntime's C headers are needed: name their folder with -DONNXRUNTIME_INCLUDE=FOLDER, "
                        "for pip in the environment (CMAKE_ARGS=-DONNXRUNTIME_INCLUDE=FOLDER), or install npm")
  endif()
  execute_process(COMMAND "${NPM}" pack --silent "${_package}@${_version}" WORKING_DIRECTORY "${CMAKE_BINARY_DIR}"
                  OUTPUT_QUIET RESULT_VARIABLE status)
  set(found "")
  if(status EQUAL 0 AND EXISTS "${archive}")
    file(SHA512 "${archive}" found)
  endif()
  if(NOT found STREQUAL _sha512)
    file(REMOVE "${archive}")
    message(FATAL_ERROR "onnxruntime's C headers cannot be fetched (status ${status}, SHA-512 '${found}'): name their "
                        "folder with -DONNXRUNTIME_INCLUDE=FOLDER, for pip in the environment: "
                        "CMAKE_ARGS=-DONNXRUNTIME_INCLUDE=FOLDER")
  endif()
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}" PATTERNS "${_inside}/*.h" "package/LICENSE*")
  file(REMOVE "${archive}")
endfunction()

if(NOT ONNXRUNTIME_INCLUDE AND EXISTS "$ENV{PHIRT_ONNXRUNTIME}/include/onnxruntime_c_api.h")
  file(TO_CMAKE_PATH "$ENV{PHIRT_ONNXRUNTIME}/include" ONNXRUNTIME_INCLUDE)
endif()
if(NOT ONNXRUNTIME_INCLUDE)
  set(_folder "${CMAKE_BINARY_DIR}/onnxruntime-headers")
  if(NOT EXISTS "${_folder}/${_inside}/onnxruntime_c_api.h")
    fetch_onnxruntime_headers("${_folder}")
  endif()
  set(ONNXRUNTIME_INCLUDE "${_folder}/${_inside}")
endif()
if(NOT EXISTS "${ONNXRUNTIME_INCLUDE}/onnxruntime_c_api.h")
  message(FATAL_ERROR "ONNXRUNTIME_INCLUDE is ${ONNXRUNTIME_INCLUDE}, which has no onnxruntime_c_api.h")
endif()
