#include "trace.h"

#include <dlfcn.h>

#include <cstdio>

namespace emu {

std::string place_in_source(const void* pc) {
  Dl_info info;
  if (!dladdr(pc, &info) || !info.dli_fname) return "an unknown place";
  char offset[32];
  // Minus one: pc is where the call returns to.
  std::snprintf(offset, sizeof(offset), "%#tx",
                static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1);
  const std::string command = std::string("addr2line -Cfipse '") + info.dli_fname + "' " + offset + " 2>/dev/null";
  std::string place;
  if (FILE* const pipe = popen(command.c_str(), "r")) {
    char line[1024];
    while (std::fgets(line, sizeof(line), pipe)) place += line;  // what is inlined has a line for each caller
    pclose(pipe);
  }
  for (char& c : place)
    if (c == '\n') c = ' ';
  while (!place.empty() && place.back() == ' ') place.pop_back();
  return place.empty() ? std::string(info.dli_fname) + " " + offset : place;
}

}  // namespace emu
