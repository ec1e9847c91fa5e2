// Turns preprocessed CUDA C++ into a C++ source whose shared object the emulated driver can launch.
#pragma once

#include <string>

// `architecture` is 90 for sm_90, and for compute_90 if `is_virtual`.
std::string translate(const std::string& preprocessed, int architecture, bool is_virtual);
