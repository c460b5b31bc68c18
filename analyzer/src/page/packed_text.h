#pragma once

#include <string>

namespace tycho::analyzer {

/// Base64 of RFC 4648, with padding.
std::string base64(const std::string& bytes);

/// zlib's format (RFC 1950), which a browser's DecompressionStream calls "deflate". Throws
/// std::runtime_error where zlib fails, which is for want of memory only.
std::string deflated(const std::string& bytes);

}  // namespace tycho::analyzer
