#pragma once

#include <string>

// Whether a writer is alive, where the file system has no locks that could tell: by process number
// and start time, which no two processes of one boot and one process namespace share.
namespace tycho::trace {

/// Names this process; empty where that is not known.
std::string this_process();
/// Whether the process that was named is alive. False also where it runs on another machine or in
/// another container.
bool is_alive(const std::string& process);

}  // namespace tycho::trace
