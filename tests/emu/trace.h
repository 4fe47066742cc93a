#pragma once

#include <string>

namespace emu {

// The function, file and line of a place in the code.
std::string place_in_source(const void* pc);

}  // namespace emu
