package meta

import (
	"slices"
	"testing"
)

func TestMaildirClasses(t *testing.T) {
	l, err := LayoutByName(LayoutMaildir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  DirKind
		name string
		want Class
	}{
		{MaildirCur, "1700000000.M1P2.host,S=12,W=13:2,S", Message},
		{MaildirNew, "1700000000.M1P2.host,S=12,W=13", Message},
		{MaildirTmp, "1700000000.M1P2.host", Volatile},
		{MaildirTmp, "dovecot-uidlist", Volatile},
		{MaildirCur, "dovecot.index.log", Control},
		{MaildirCur, "maildirfolder", Control},
		{MaildirCur, "x.lock", Volatile},
		{Plain, "dovecot-uidlist", Control},
		{Plain, "dovecot-uidlist.lock", Volatile},
		{Plain, "dovecot-keywords", Control},
		{Plain, "dovecot.index", Control},
		{Plain, "dovecot.index.log", Control},
		{Plain, "dovecot.index.log.2", Control},
		{Plain, "dovecot.list.index", Control},
		{Plain, "dovecot.index.cache", Volatile},
		{Plain, "dovecot.index.cache.lock", Volatile},
		{Plain, "dovecot.index.tmp", Volatile},
		{Plain, "dovecot-uidlist.tmp", Volatile},
		{Plain, "subscriptions", Control},
		{Plain, "subscriptions.lock", Volatile},
		{Plain, ".temp.host.12.abc", Volatile},
		{Plain, "dovecot-uidvalidity.temp.1.2", Volatile},
		{Plain, "temp.sieve", Control},
		{Plain, "maildirsize", Control},
		{Plain, "dovecot.index.search", Volatile},
		{Plain, "fts-flatcurve.1", Volatile},
		{Plain, "anything", Control},
		{Plain, "1700000000.M1P2.host:2,S", Control},
	} {
		if got := l.Class(c.dir, c.name); got != c.want {
			t.Errorf("%q in %d: %v, want %v", c.name, c.dir, got, c.want)
		}
	}
}

func TestMaildirDirs(t *testing.T) {
	l, _ := LayoutByName(LayoutMaildir)
	for _, c := range []struct {
		name   string
		beside []string
		want   DirKind
	}{
		{"tmp", []string{"cur", "new"}, MaildirTmp},
		{"new", []string{"cur", "tmp"}, MaildirNew},
		{"cur", []string{"new", "tmp", ".Sent"}, MaildirCur},
		{"tmp", []string{"cur"}, Plain}, // a user's folder, or a Maildir in the making
		{"tmp", nil, Plain},
		{".Sent", []string{"cur", "new", "tmp"}, Plain},
		{"Tmp", []string{"cur", "new"}, Plain},
	} {
		got := l.DirKind(c.name, func(name string) bool { return slices.Contains(c.beside, name) })
		if got != c.want {
			t.Errorf("%q beside %v: %d, want %d", c.name, c.beside, got, c.want)
		}
	}
}

func TestUnknownLayout(t *testing.T) {
	if _, err := LayoutByName("mbox"); err == nil {
		t.Error("accepted")
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*.lock", ".lock", true},
		{"*.temp.*", "a.temp.b", true}, {"*.temp.*", ".temp.", true}, {"*.temp.*", "a.tempb", false},
		{"a*a", "a", false}, {"a*a", "aa", true}, {"a*b*c", "a1b2c", true}, {"a*b*c", "abc", true}, {"a*b*c", "acb", false},
		{"[x]*", "[x]y", true}, {"*\xff", "a\xff", true},
	} {
		if got := match(c.pattern, c.name); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}
