package imap_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"

	"slotfs/integration/imap"
)

// server plays a server: for each command it expects the text after the tag
// and answers with the given lines.
func server(t *testing.T, script ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "* OK [CAPABILITY IMAP4rev1] it's \"ready (\r\n")
		in := bufio.NewReader(conn)
		for i := 0; i+1 < len(script); i += 2 {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			tag, command, _ := strings.Cut(strings.TrimSpace(line), " ")
			if command != script[i] {
				t.Errorf("got %q, want %q", command, script[i])
			}
			fmt.Fprint(conn, strings.ReplaceAll(script[i+1], "TAG", tag))
		}
	}()
	return l.Addr().String()
}

func TestSession(t *testing.T) {
	addr := server(t,
		`LOGIN "u" "p\"w"`, "TAG OK [CAPABILITY X (] Logged \"in)\r\n",
		`SELECT "In box" (CONDSTORE)`, "* FLAGS (\\Seen)\r\n* 3 EXISTS\r\n* OK [UIDVALIDITY 77] x\r\n* OK [UIDNEXT 9] x\r\n* OK [HIGHESTMODSEQ 5] x\r\nTAG OK done\r\n",
		`UID FETCH 1:* (UID FLAGS INTERNALDATE MODSEQ BODY.PEEK[])`,
		"* 1 FETCH (UID 7 FLAGS (\\Seen \\Recent $Label \\Answered) INTERNALDATE \" 1-Jan-2020 00:00:00 +0000\" MODSEQ (4) BODY[] {7}\r\na)\r\n\"\x00{)\r\n"+
			"* 2 FETCH (BODY[] ~{2}\r\n\x00\x00 UID 8)\r\n"+
			"* 3 FETCH (BODY[] \"\" UID 9)\r\nTAG OK Fetch completed (0.001 secs).\r\n",
		`UID STORE 7 +FLAGS (a b)`, "TAG NO [ALERT] not \"now\r\n",
		`STATUS "x" (MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ)`, "* STATUS x (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3 HIGHESTMODSEQ 4)\r\nTAG OK\r\n",
	)
	c, err := imap.Open(addr, "u", `p"w`)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	box, err := c.Select("In box")
	if want := (imap.Mailbox{UIDValidity: 77, UIDNext: 9, Messages: 3, HighestModSeq: 5}); err != nil || box != want {
		t.Errorf("Select = %+v, %v; want %+v", box, err, want)
	}
	messages, err := c.Fetch("1:*", true)
	if err != nil {
		t.Fatal(err)
	}
	want := []imap.Message{
		{Seq: 1, UID: 7, ModSeq: 4, Flags: []string{"$Label", `\Answered`, `\Seen`}, InternalDate: " 1-Jan-2020 00:00:00 +0000", Body: []byte("a)\r\n\"\x00{")},
		{Seq: 2, UID: 8, Body: []byte{0, 0}},
		{Seq: 3, UID: 9, Body: []byte{}},
	}
	if !reflect.DeepEqual(messages, want) {
		t.Errorf("Fetch =\n%+v, want\n%+v", messages, want)
	}
	var refused *imap.RefusedError
	if err := c.Store("7", "+FLAGS", "a", "b"); !errors.As(err, &refused) {
		t.Errorf("Store = %v, want a refusal", err)
	}
	box, err = c.Status("x")
	if want := (imap.Mailbox{UIDValidity: 3, UIDNext: 2, Messages: 1, HighestModSeq: 4}); err != nil || box != want {
		t.Errorf("Status = %+v, %v; want %+v", box, err, want)
	}
}

func TestNormal(t *testing.T) {
	got := imap.Normal([]byte("a\nb\r\nc\rd\x00\n"))
	if want := "a\r\nb\r\nc\rd\x80\r\n"; string(got) != want {
		t.Errorf("Normal = %q, want %q", got, want)
	}
}
