// A tile unit in plain C++, for CPUs without AMX. Knows the instructions as Intel's manual defines them ("Intel 64
// and IA-32 Architectures Software Developer's Manual", volume 2, and chapter 18 of volume 1); no kernel.
#pragma once

// From now on, instructions of AMX that this CPU does not know are computed when it refuses them: what is tested
// is the machine code that is shipped. Anything that the manual forbids ends the program with a line that says so.
void compute_tile_instructions();

// How many were computed.
long tile_instructions();
