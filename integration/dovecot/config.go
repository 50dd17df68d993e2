package dovecot

import "fmt"

// The ports of a server, on a loopback address of its own.
const (
	lmtpPort = 10024
	imapPort = 10143
)

// config is the whole configuration: what a stock Maildir server has, with
// limits raised so that a test never meets them.
func config(run, root, ip string, o Options) string {
	return fmt.Sprintf(`base_dir = %[1]s/b
state_dir = %[1]s/s
log_path = %[1]s/log
listen = %[3]s
protocols = imap lmtp
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_cache_size = 10M
auth_username_format = %%Ln
first_valid_uid = 1
mail_location = maildir:%[2]s/%%u
mail_fsync = always
mail_max_userip_connections = 10000
verbose_proctitle = no
default_process_limit = 2000
default_client_limit = 10000
default_vsz_limit = 0
passdb {
  driver = static
  args = password=%[7]s
}
userdb {
  driver = static
  args = uid=%[5]d gid=%[6]d home=%[2]s/%%u allow_all_users=yes
}
namespace inbox {
  inbox = yes
  separator = /
}
service imap-login {
  inet_listener imap {
    address = %[3]s
    port = %[9]d
  }
  inet_listener imaps {
    port = 0
  }
  service_count = 0
  client_limit = 4000
}
service imap {
  process_limit = 4000
  service_count = 1000
}
service lmtp {
  inet_listener lmtp {
    address = %[3]s
    port = %[4]d
  }
  process_limit = 1000
  service_count = 0
}
service auth {
  client_limit = 20000
}
service anvil {
  client_limit = 20000
}
service stats {
  client_limit = 20000
}
%[8]s
`, run, root, ip, lmtpPort, o.UID, o.GID, o.Password, o.Extra, imapPort)
}
