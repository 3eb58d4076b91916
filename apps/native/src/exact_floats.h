// For files whose sums are to be rounded as they stand: fused, the same picture would give other numbers on
// other processors. CMakeLists.txt says the same to compilers that take it as an option; Xcode and SwiftPM
// read it here.
#pragma once

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
