#pragma once

#include <string>
#include <string_view>

namespace tycho::analyzer {

/// Who may look. Without a token everybody on this machine may, and a page of another site may not
/// have the browser ask for it under a name of its own (DNS rebinding).
class Access {
 public:
  /// `token` empty: none is asked for.
  Access(std::string token, bool loopback) : token_(std::move(token)), loopback_(loopback) {}

  /// Whether a request that names this host (the header Host) may be answered.
  bool is_own_host(std::string_view host) const;
  /// Whether one of these is the token: the header Authorization, the cookie, the query's.
  bool is_allowed(std::string_view authorization, std::string_view cookies,
                  std::string_view query_token) const;
  bool asks_for_token() const { return !token_.empty(); }

 private:
  std::string token_;
  bool loopback_;
};

/// Compares in a time that depends on the length of `given` only.
bool same_secret(std::string_view secret, std::string_view given);
/// Whether it can be guessed by nobody and written anywhere: 16 or more of [A-Za-z0-9._~-].
bool is_good_token(std::string_view token);
/// 127.0.0.0/8, ::1 or localhost.
bool is_loopback(std::string_view host);

/// Under which the token is kept by a browser.
inline constexpr std::string_view kTokenCookie = "tycho_token";

}  // namespace tycho::analyzer
