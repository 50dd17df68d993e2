/*
 * The role protocol of package repl with a register, for exhaustive search.
 * See README.md beside this file for what it abstracts and how it is run.
 *
 * Slots are numbered from 0; sets of slots are bit masks. An attempt to change
 * the record has a number, its nonce; nonce n stands for epoch epochOf[n]. A log
 * is an array of entries: 1..ENTRIES are calls of a client, BEGIN+n is the first
 * entry of the epoch that attempt n made.
 */
#ifndef N
#define N 2        /* slots */
#endif
#ifndef ENTRIES
#define ENTRIES 2  /* calls of clients */
#endif
#ifndef NONCES
#define NONCES 4   /* attempts to change the record, beside the first state */
#endif
#ifndef CRASHES
#define CRASHES 2
#endif

#define LOG (ENTRIES + NONCES + 1)
#define BEGIN 16
#define bit(s) (1 << (s))
#define has(set, s) (((set) >> (s)) & 1)
#define NOBODY 7

/* roles */
#define REPLICA 0
#define SEALED  1 /* on the path: follows nobody, the record's epoch is sealed */
#define ASKING  2 /* on the path: the Swap is under way */
#define LEADING 3

/* on disk */
typedef slot {
	byte log[LOG];
	byte size;      /* entries in memory; the first durable ones are on disk */
	byte durable;
	byte sealed;   /* highest sealed epoch */
	byte prepared; /* set of nonces noted */
	/* in memory */
	byte role;
	byte follows;  /* NOBODY, or a slot that leads */
	byte epoch;    /* while leading */
	byte set;      /* while leading: the in-sync set */
	byte rule;     /* while leading: for whom commits wait, itself included */
	byte beginAt;  /* while leading: length at which the rule becomes the set; 0: it is */
	byte enters;   /* while leading: who is on the way in; NOBODY */
	byte mark;     /* what must be durable there first */
	byte commit;   /* while leading */
	byte expect;   /* of the Swap under way: expected epoch; 0: none is */
	byte nonce;
	byte next;     /* its set */
	byte heard[N]; /* while leading: what slot i acknowledged as durable */
	byte wire[N]  /* what it has said, unread */
};
slot s[N];

/* the register, and Swaps on their way there that nobody waits for any more */
byte recEpoch = 1, recPrimary = 0, recSet = (1 << N) - 1, recNonce = 0;
byte lateExpect[N], lateNonce[N], lateSet[N];

byte epochOf[NONCES + 1];
byte nonces = 0;     /* attempts made */
byte calls = 0;
byte crashes = 0;
byte acked[LOG];     /* what clients were told, by place in the log */
byte ackedLen = 0;

byte i_, j_, k_; /* scratch, always reset: no part of the state */

/* What must be true: whoever the register names in sync has, on disk, all that
 * was ever acknowledged. */
inline check() {
	i_ = 0;
	do
	:: i_ < N ->
		if
		:: has(recSet, i_) ->
			assert(s[i_].durable >= ackedLen);
			k_ = 0;
			do
			:: k_ < ackedLen -> assert(s[i_].log[k_] == acked[k_]); k_++
			:: else -> break
			od
		:: else
		fi;
		i_++
	:: else -> break
	od;
	i_ = 0; k_ = 0
}

/* lastNonce leaves the nonce of slot x's last epoch in j_. */
inline lastNonce(x, upto) {
	j_ = 0; k_ = upto;
	do
	:: k_ > 0 && s[x].log[k_ - 1] >= BEGIN -> j_ = s[x].log[k_ - 1] - BEGIN; break
	:: k_ > 0 && s[x].log[k_ - 1] < BEGIN -> k_--
	:: k_ == 0 -> break
	od;
	k_ = 0
}

/* holds: x proves by its disk that it belongs to the record's epoch; in i_. */
inline holds(x) {
	i_ = has(s[x].prepared, recNonce);
	k_ = 0;
	do
	:: k_ < s[x].durable -> i_ = i_ | (s[x].log[k_] == BEGIN + recNonce); k_++
	:: else -> break
	od;
	k_ = 0
}

inline truncate(x, to) {
	k_ = to;
	do
	:: k_ < s[x].size -> s[x].log[k_] = 0; k_++
	:: else -> break
	od;
	k_ = 0;
	s[x].size = to;
	if
	:: s[x].durable > to -> s[x].durable = to
	:: else
	fi
}

inline stepDown(x) {
	s[x].role = REPLICA; s[x].epoch = 0; s[x].set = 0; s[x].rule = 0; s[x].beginAt = 0;
	s[x].enters = NOBODY; s[x].mark = 0; s[x].commit = 0;
	k_ = 0;
	do
	:: k_ < N ->
		s[x].heard[k_] = 0; s[x].wire[k_] = 0;
		if
		:: s[k_].follows == x -> s[k_].follows = NOBODY
		:: else
		fi;
		k_++
	:: else -> break
	od;
	k_ = 0
}

/* A Swap whose asker does not wait any more may still happen. */
inline orphan(x) {
	if
	:: s[x].expect > 0 -> lateExpect[x] = s[x].expect; lateNonce[x] = s[x].nonce; lateSet[x] = s[x].next
	:: else
	fi;
	s[x].expect = 0; s[x].nonce = 0; s[x].next = 0
}

inline carryOut(who, old, att, set_) {
	if
	:: recEpoch == old -> recEpoch = old + 1; recPrimary = who; recNonce = att; recSet = set_
	:: else
	fi;
	check()
}

/* advance is the commit rule; it acknowledges what follows from it. */
inline advance(x) {
	if
	:: s[x].beginAt > 0 && s[x].durable >= s[x].beginAt -> s[x].rule = s[x].set; s[x].beginAt = 0;
		if
		:: s[x].enters != NOBODY && has(s[x].set, s[x].enters) -> s[x].enters = NOBODY; s[x].mark = 0
		:: s[x].enters != NOBODY && !has(s[x].set, s[x].enters) -> s[x].rule = s[x].rule | bit(s[x].enters)
		:: else
		fi
	:: else
	fi;
	k_ = s[x].durable;
	i_ = 0;
	do
	:: i_ < N ->
		if
		:: i_ != x && has(s[x].rule, i_) && s[x].heard[i_] < k_ -> k_ = s[x].heard[i_]
		:: else
		fi;
		i_++
	:: else -> break
	od;
	i_ = 0;
	if
	:: k_ > s[x].commit -> s[x].commit = k_
	:: else
	fi;
	k_ = 0;
	do
	:: k_ < s[x].commit ->
		if
		:: k_ < ackedLen -> assert(acked[k_] == s[x].log[k_])
		:: else -> acked[k_] = s[x].log[k_]; ackedLen++
		fi;
		k_++
	:: else -> break
	od;
	k_ = 0;
	check()
}

inline begin(x) {
	s[x].log[s[x].size] = BEGIN + s[x].nonce;
	s[x].size++;
	s[x].epoch = epochOf[s[x].nonce];
	if
	:: s[x].role == LEADING -> s[x].rule = s[x].rule | s[x].next; s[x].beginAt = s[x].size
	:: else -> s[x].rule = s[x].next; s[x].role = LEADING; s[x].enters = NOBODY; s[x].mark = 0
	fi;
	s[x].set = s[x].next;
	s[x].expect = 0; s[x].nonce = 0; s[x].next = 0
}

proctype Slot(byte x) {
	byte y;
	do
	/* a client's call, while leading */
	:: atomic { s[x].role == LEADING && calls < ENTRIES && s[x].size < LOG -> calls++; s[x].log[s[x].size] = calls; s[x].size++ }
	/* fsync */
	:: atomic { s[x].durable < s[x].size -> s[x].durable = s[x].size;
		if
		:: s[x].role == LEADING -> advance(x)
		:: else
		fi }

	/* following: the histories are joined where they part, a tail is cut */
	:: atomic { s[x].role == REPLICA && s[x].follows == NOBODY ->
		select(y : 0 .. N - 1);
		if
		:: y != x && s[y].role == LEADING && s[y].epoch > s[x].sealed ->
			lastNonce(x, s[x].size);
			if
			:: epochOf[j_] <= s[y].epoch ->
				j_ = 0;
				do
				:: j_ < s[x].size && j_ < s[y].size && s[x].log[j_] == s[y].log[j_] -> j_++
				:: else -> break
				od;
				truncate(x, j_);
				s[x].follows = y; s[y].wire[x] = 0
			:: else
			fi
		:: else
		fi;
		j_ = 0; y = 0 }
	:: atomic { s[x].follows != NOBODY && s[x].size < s[s[x].follows].size -> s[x].log[s[x].size] = s[s[x].follows].log[s[x].size]; s[x].size++ }
	:: atomic { s[x].follows != NOBODY && s[s[x].follows].wire[x] != s[x].durable -> s[s[x].follows].wire[x] = s[x].durable }
#ifdef BUG_ACKS_ON
	/* it goes on acknowledging to whom it followed last */
	:: atomic { s[x].role != REPLICA ->
		select(y : 0 .. N - 1);
		if
		:: y != x && s[y].role == LEADING && s[y].wire[x] > 0 -> s[y].wire[x] = s[x].durable
		:: else
		fi;
		y = 0 }
#endif
	/* the connection ends */
	:: atomic { s[x].follows != NOBODY -> s[x].follows = NOBODY }
	/* a primary reads what is in its socket, whether the other end is still there or not */
	:: atomic { s[x].role == LEADING ->
		select(y : 0 .. N - 1);
		if
		:: y != x && s[x].wire[y] > s[x].heard[y] -> s[x].heard[y] = s[x].wire[y]; advance(x)
		:: else
		fi;
		y = 0 }

	/* the path to primary: Get, judge, follow nobody, seal */
	:: atomic { s[x].role == REPLICA && has(recSet, x) && nonces < NONCES && lateExpect[x] == 0 ->
		holds(x);
		if
		:: i_ -> s[x].follows = NOBODY; s[x].role = SEALED; s[x].epoch = recEpoch;
#ifndef BUG_NO_SEAL
			s[x].sealed = recEpoch
#endif
		:: else
		fi;
		i_ = 0 }
	/* a longer tail of another member */
	:: atomic { s[x].role == SEALED ->
		select(y : 0 .. N - 1);
		if
		:: y != x && has(recSet, y) && s[y].role != LEADING && s[y].size > s[x].size ->
			j_ = 0;
			do
			:: j_ < s[x].size && s[x].log[j_] == s[y].log[j_] -> j_++
			:: else -> break
			od;
			if
			:: j_ == s[x].size ->
				do
				:: j_ < s[y].size -> s[x].log[j_] = s[y].log[j_]; j_++
				:: else -> break
				od;
				s[x].size = s[y].size
			:: else
			fi
		:: else
		fi;
		j_ = 0; y = 0 }
	/* the next set notes that it may join, and the register is asked */
	:: atomic { s[x].role == SEALED && recEpoch == s[x].epoch && nonces < NONCES ->
		nonces++;
		epochOf[nonces] = s[x].epoch + 1;
		s[x].nonce = nonces; s[x].expect = s[x].epoch; s[x].next = bit(x); s[x].role = ASKING;
		y = 0;
		do
		:: y < N && y != x && has(recSet, y) && s[y].role != LEADING ->
			holds(y);
			if
			:: i_ -> s[x].next = s[x].next | bit(y)
			:: true /* it did not answer */
			fi;
			i_ = 0; y++
		:: y < N && !(y != x && has(recSet, y) && s[y].role != LEADING) -> y++
		:: y == N -> break
		od;
		y = 0;
		do
		:: y < N ->
			if
			:: has(s[x].next, y) -> s[y].prepared = s[y].prepared | bit(s[x].nonce)
			:: else
			fi;
			y++
		:: else -> break
		od;
		y = 0 }
	:: atomic { s[x].role == SEALED && recEpoch != s[x].epoch -> s[x].role = REPLICA; s[x].epoch = 0 }

	/* the register carries a Swap out; the answer may be lost */
	:: atomic { s[x].expect > 0 && recEpoch == s[x].expect -> carryOut(x, s[x].expect, s[x].nonce, s[x].next) }
	/* the outcome is known when the record has left the expected epoch */
	:: atomic { s[x].expect > 0 && recEpoch != s[x].expect ->
		if
		:: recNonce == s[x].nonce -> begin(x); advance(x)
		:: recNonce != s[x].nonce ->
			s[x].expect = 0; s[x].nonce = 0; s[x].next = 0;
			stepDown(x)
		fi }
#ifdef BUG_UNKNOWN_WON
	:: atomic { s[x].expect > 0 && recEpoch == s[x].expect -> lateExpect[x] = s[x].expect; lateNonce[x] = s[x].nonce; lateSet[x] = s[x].next; begin(x); advance(x) }
#endif
	:: atomic { lateExpect[x] > 0 -> carryOut(x, lateExpect[x], lateNonce[x], lateSet[x]); lateExpect[x] = 0; lateNonce[x] = 0; lateSet[x] = 0 }
	:: atomic { lateExpect[x] > 0 -> lateExpect[x] = 0; lateNonce[x] = 0; lateSet[x] = 0 }

	/* leading: it hears that it is superseded */
	:: atomic { s[x].role == LEADING && s[x].expect == 0 && recEpoch > s[x].epoch -> stepDown(x) }
	/* or it ends its role for another reason, perhaps with a Swap under way */
	:: atomic { s[x].role == LEADING && lateExpect[x] == 0 && crashes < CRASHES -> crashes++; orphan(x); stepDown(x) }

	/* a member is dropped */
	:: atomic { s[x].role == LEADING && s[x].expect == 0 && s[x].beginAt == 0 && recEpoch == s[x].epoch && nonces < NONCES ->
		select(y : 0 .. N - 1);
		if
		:: y != x && has(s[x].set, y) ->
			nonces++;
			epochOf[nonces] = s[x].epoch + 1;
			s[x].nonce = nonces; s[x].expect = s[x].epoch; s[x].next = s[x].set & ~bit(y);
#ifdef BUG_RULE_FIRST
			s[x].rule = s[x].next;
#endif
			k_ = 0;
			do
			:: k_ < N ->
				if
				:: has(s[x].next, k_) -> s[k_].prepared = s[k_].prepared | bit(s[x].nonce)
				:: else
				fi;
				k_++
			:: else -> break
			od;
			k_ = 0
#ifdef BUG_RULE_FIRST
			; advance(x)
#endif
		:: else
		fi;
		y = 0 }
	/* re-entry: commits wait for it, too */
	:: atomic { s[x].role == LEADING && s[x].enters == NOBODY && s[x].expect == 0 ->
		select(y : 0 .. N - 1);
		if
		:: y != x && !has(s[x].set, y) && s[y].follows == x -> s[x].enters = y; s[x].mark = s[x].size;
#ifndef BUG_NO_WAIT
			s[x].rule = s[x].rule | bit(y)
#endif
		:: else
		fi;
		y = 0 }
	/* it has all that was acknowledged before that: it notes, and the register is asked */
	:: atomic { s[x].role == LEADING && s[x].enters != NOBODY && s[x].expect == 0 && s[x].beginAt == 0 && recEpoch == s[x].epoch && nonces < NONCES && s[s[x].enters].follows == x && s[x].heard[s[x].enters] >= s[x].mark ->
		nonces++;
		epochOf[nonces] = s[x].epoch + 1;
		s[x].nonce = nonces; s[x].expect = s[x].epoch; s[x].next = s[x].set | bit(s[x].enters);
		k_ = 0;
		do
		:: k_ < N ->
			if
			:: has(s[x].next, k_) -> s[k_].prepared = s[k_].prepared | bit(s[x].nonce)
			:: else
			fi;
			k_++
		:: else -> break
		od;
		k_ = 0 }
	/* it is gone again, and the register was not asked yet */
	:: atomic { s[x].role == LEADING && s[x].enters != NOBODY && s[x].expect == 0 && s[x].beginAt == 0 ->
		s[x].rule = s[x].set; s[x].enters = NOBODY; s[x].mark = 0; advance(x) }

	/* crash: the memory is lost; what was not durable may be on the disk, or not */
	:: atomic { crashes < CRASHES && lateExpect[x] == 0 -> crashes++;
		orphan(x);
		if
		:: truncate(x, s[x].durable)
		:: s[x].durable = s[x].size
		fi;
		s[x].follows = NOBODY;
		stepDown(x);
		check() }
	od
}

init {
	atomic {
		i_ = 0;
		epochOf[0] = 1;
		do
		:: i_ < N ->
			s[i_].log[0] = BEGIN; s[i_].size = 1; s[i_].durable = 1;
			s[i_].follows = NOBODY; s[i_].enters = NOBODY;
			i_++
		:: else -> break
		od;
		i_ = 0;
		/* epoch 1 has begun, with all slots in sync */
		s[0].role = LEADING; s[0].epoch = 1; s[0].set = recSet; s[0].rule = recSet;
		do
		:: i_ < N -> run Slot(i_); i_++
		:: else -> break
		od;
		i_ = 0
	}
}
