#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstring>

#include "src/serve/card_index.h"

namespace tycho::analyzer {
namespace {

// The build id among the notes of an object; empty: it has none.
std::string build_id(const dl_phdr_info& object) {
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = object.dlpi_phdr[i];
    if (header.p_type != PT_NOTE) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses are what the loader gives.
    const char* at = reinterpret_cast<const char*>(object.dlpi_addr + header.p_vaddr);
    const char* end = at + header.p_memsz;
    const size_t align = header.p_align == 8 ? 8 : 4;
    const auto padded = [&](size_t size) { return (size + align - 1) / align * align; };
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      ElfW(Nhdr) note;
      std::memcpy(&note, at, sizeof note);
      const char* name = at + sizeof note;
      const char* content = name + padded(note.n_namesz);
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
          std::memcmp(name, "GNU", 4) == 0) {
        std::string text;
        for (size_t k = 0; k < note.n_descsz; ++k)
          text += fmt::format("{:02x}", static_cast<unsigned char>(content[k]));
        return text;
      }
      at = content + padded(note.n_descsz);
    }
  }
  return "";
}

struct Ids {
  std::string text;
  int objects = 0;
  bool program_has_one = false;
};

int add(dl_phdr_info* object, size_t /*size*/, void* data) {
  auto* ids = static_cast<Ids*>(data);
  const std::string id = build_id(*object);
  // The program comes first.
  if (ids->objects++ == 0) ids->program_has_one = !id.empty();
  ids->text += id + ' ';
  return 0;
}

}  // namespace

std::string program_identity() {
  Ids ids;
  ::dl_iterate_phdr(add, &ids);
  return ids.program_has_one ? ids.text : "";
}

}  // namespace tycho::analyzer
