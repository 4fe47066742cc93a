// The names of the synchronising calls: which ones a kernel has met, and which one a test has switched off.

#include <cstdlib>
#include <cstring>

#include "internal.h"

namespace emu {
namespace {

struct Entry {
  Site site = "";
  long calls = 0;
  bool is_off = false;
};

// A fixed array: it grows on the stacks of fibers, where memory must not be exchanged.
constexpr int kMaxSites = 1024;
Entry entries[kMaxSites];
int count = 0;
char mutant[256] = "";

bool is_same(Site a, Site b) {
  return (a.name == b.name || !std::strcmp(a.name, b.name)) &&
         (a.suffix == b.suffix || !std::strcmp(a.suffix, b.suffix));
}

bool is_mutant(Site site) {
  const size_t length = std::strlen(site.name);
  return mutant[0] && !std::strncmp(mutant, site.name, length) && !std::strcmp(mutant + length, site.suffix);
}

Entry& entry_of(Site site) {
  // The same call has the same pointers, and comes again soon.
  static Entry* cache[64];
  const size_t slot = ((reinterpret_cast<uintptr_t>(site.name) >> 2) ^ reinterpret_cast<uintptr_t>(site.suffix)) % 64;
  Entry* const cached = cache[slot];
  if (cached && cached->site.name == site.name && cached->site.suffix == site.suffix) return *cached;
  for (int i = 0; i < count; ++i)
    if (is_same(entries[i].site, site)) return *(cache[slot] = &entries[i]);
  if (count == kMaxSites) fail("more than 1024 names of synchronising calls");
  entries[count].site = site;
  entries[count].is_off = is_mutant(site);
  return *(cache[slot] = &entries[count++]);
}

}  // namespace

void choose_mutant() {
  const char* const name = std::getenv("EMU_MUTANT");
  std::strncpy(mutant, name ? name : "", sizeof(mutant) - 1);
  for (int i = 0; i < count; ++i) entries[i].is_off = is_mutant(entries[i].site);
}

bool is_on(Site site) {
  Entry& entry = entry_of(site);
  ++entry.calls;
  return !entry.is_off;
}

std::vector<SiteCalls> sites() {
  std::vector<SiteCalls> result;
  for (int i = 0; i < count; ++i)
    if (entries[i].calls)
      result.push_back({std::string(entries[i].site.name) + entries[i].site.suffix, entries[i].calls});
  return result;
}

void forget_sites() {
  for (int i = 0; i < count; ++i) entries[i].calls = 0;
}

}  // namespace emu
