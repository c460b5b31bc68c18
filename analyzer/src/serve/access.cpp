#include "access.h"

#include <algorithm>
#include <cctype>

namespace tycho::analyzer {
namespace {

// Without the port, and without the brackets of an IPv6 address.
std::string_view host_name(std::string_view host) {
  if (!host.empty() && host.front() == '[') {
    const size_t end = host.find(']');
    return end == std::string_view::npos ? host : host.substr(1, end - 1);
  }
  const size_t colon = host.rfind(':');
  return colon == std::string_view::npos || host.find(':') != colon ? host : host.substr(0, colon);
}

std::string_view cookie_value(std::string_view cookies, std::string_view name) {
  while (!cookies.empty()) {
    const size_t end = std::min(cookies.find(';'), cookies.size());
    std::string_view pair = cookies.substr(0, end);
    cookies.remove_prefix(std::min(end + 1, cookies.size()));
    while (!pair.empty() && pair.front() == ' ') pair.remove_prefix(1);
    const size_t equals = pair.find('=');
    if (equals != std::string_view::npos && pair.substr(0, equals) == name)
      return pair.substr(equals + 1);
  }
  return {};
}

}  // namespace

bool same_secret(std::string_view secret, std::string_view given) {
  if (secret.empty()) return false;
  unsigned int difference = secret.size() == given.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^
                  static_cast<unsigned char>(secret[i % secret.size()]);
  }
  return difference == 0;
}

bool is_good_token(std::string_view token) {
  constexpr size_t kFewest = 16;
  return token.size() >= kFewest && std::all_of(token.begin(), token.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '~' || c == '-';
         });
}

bool is_loopback(std::string_view host) {
  if (host == "localhost" || host == "::1") return true;
  // An address, not the name of another host that begins like one.
  return host.substr(0, 4) == "127." && host.find_first_not_of("0123456789.") == host.npos;
}

bool Access::is_own_host(std::string_view host) const {
  // With a token a page of another site has no cookie to show.
  return asks_for_token() || !loopback_ || is_loopback(host_name(host));
}

bool Access::is_allowed(std::string_view authorization, std::string_view cookies,
                        std::string_view query_token) const {
  if (!asks_for_token()) return true;
  constexpr std::string_view kBearer = "Bearer ";
  const bool has_bearer = authorization.substr(0, kBearer.size()) == kBearer;
  bool allowed = has_bearer && same_secret(token_, authorization.substr(kBearer.size()));
  allowed |= same_secret(token_, cookie_value(cookies, kTokenCookie));
  allowed |= same_secret(token_, query_token);
  return allowed;
}

}  // namespace tycho::analyzer
