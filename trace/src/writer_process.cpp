#include "writer_process.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>

namespace tycho::trace {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// In clock ticks since the boot; empty where there is no such process, or nothing but its remains.
std::string start_time(const std::string& process) {
  const std::string facts = read_text("/proc/" + process + "/stat");
  // The name of the program stands in parentheses and may hold any character. The state comes
  // next, then 18 numbers, then the start time.
  const size_t name_end = facts.rfind(')');
  if (name_end == std::string::npos) return "";
  std::istringstream rest(facts.substr(name_end + 1));
  std::string field;
  rest >> field;
  if (field == "Z" || field == "X") return "";
  for (int i = 0; i < 19; ++i) rest >> field;
  return rest ? field : "";
}

// The boot and the process namespace.
std::string machine() {
  std::string boot = read_text("/proc/sys/kernel/random/boot_id");
  while (!boot.empty() && boot.back() == '\n') boot.pop_back();
  struct stat facts {};
  if (boot.empty() || ::stat("/proc/self/ns/pid", &facts) != 0) return "";
  return fmt::format("{} {}", boot, facts.st_ino);
}

}  // namespace

std::string this_process() {
  const std::string place = machine();
  const std::string process = std::to_string(::getpid());
  const std::string started = start_time(process);
  return place.empty() || started.empty() ? "" : fmt::format("{} {} {}", place, process, started);
}

bool is_alive(const std::string& process) {
  std::istringstream fields(process);
  std::string boot, name_space, number, started;
  fields >> boot >> name_space >> number >> started;
  return !started.empty() && boot + " " + name_space == machine() &&
         number.find_first_not_of("0123456789") == std::string::npos &&
         start_time(number) == started;
}

}  // namespace tycho::trace
