package lmtp_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"

	"slotfs/integration/lmtp"
)

func TestWire(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "",
		"a\nb\r\n":             "a\r\nb\r\n",
		".\n..a\nno end":       "..\r\n...a\r\nno end\r\n",
		"nul \x00 cr \r in\n":  "nul \x00 cr \r in\r\n",
		"8-bit \xff\xfe\r\n\n": "8-bit \xff\xfe\r\n\r\n",
	} {
		if got := string(lmtp.Wire([]byte(in))); got != want {
			t.Errorf("Wire(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestDeliver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		var seen strings.Builder
		step := func(reply string) {
			line, _ := in.ReadString('\n')
			seen.WriteString(line)
			fmt.Fprint(conn, reply)
		}
		fmt.Fprint(conn, "220 hello\r\n")
		step("250-a\r\n250 b\r\n")
		step("250 ok\r\n")
		step("250 ok\r\n")
		step("250 ok\r\n")
		step("354 go\r\n")
		for !strings.HasSuffix(seen.String(), "\r\n.\r\n") {
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			seen.WriteString(line)
		}
		fmt.Fprint(conn, "250 2.0.0 saved\r\n452 4.2.2 full\r\n")
		got <- seen.String()
	}()
	c, err := lmtp.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	replies, err := c.Deliver("s@x", []string{"a@x", "b@x"}, []byte("hi\n.\n"))
	if err != nil || len(replies) != 2 || !replies[0].OK() || replies[1].OK() {
		t.Errorf("Deliver = %v, %v", replies, err)
	}
	want := "LHLO localhost\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\nhi\r\n..\r\n.\r\n"
	if got := <-got; got != want {
		t.Errorf("server saw %q, want %q", got, want)
	}
}
