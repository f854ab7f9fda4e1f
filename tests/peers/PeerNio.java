import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.Iterator;

/** Transfers over channels and one selector. The protocol is in README.md. */
public class PeerNio {
    static final int PERIOD = 65521;

    static byte[] pattern(int salt, int size) {
        byte[] data = new byte[size];
        for (int i = 0; i < size; i++) {
            int at = i % PERIOD;
            data[i] = (byte) (at * 7 + (at >> 8) * 13 + salt);
        }
        return data;
    }

    static byte[] sha256(byte[] data) throws Exception {
        return MessageDigest.getInstance("SHA-256").digest(data);
    }

    /** One end of a transfer. */
    abstract static class End {
        final SocketChannel channel;
        final ByteBuffer piece = ByteBuffer.allocateDirect(48 * 1024);
        ByteBuffer in;
        ByteBuffer out = ByteBuffer.allocate(0);
        boolean ended;

        End(SocketChannel channel) {
            this.channel = channel;
        }

        /** Everything that could be read was; returns whether the end is over. */
        abstract boolean step() throws Exception;

        void read() throws Exception {
            while (!ended) {
                piece.clear();
                int n = channel.read(piece);
                if (n == 0) {
                    return;
                }
                if (n < 0) {
                    ended = true;
                    return;
                }
                piece.flip();
                in.put(piece);
            }
        }

        void run(SelectionKey key) throws Exception {
            if (key.isReadable()) {
                read();
            }
            while (true) {
                if (out.hasRemaining()) {
                    channel.write(out);
                }
                if (out.hasRemaining()) {
                    break;
                }
                ByteBuffer before = out;
                if (step()) {
                    key.cancel();
                    channel.close();
                    return;
                }
                if (out == before) {
                    break;
                }
            }
            key.interestOps((ended ? 0 : SelectionKey.OP_READ) | (out.hasRemaining() ? SelectionKey.OP_WRITE : 0));
        }
    }

    static class ServerEnd extends End {
        boolean begun;
        boolean answered;

        ServerEnd(SocketChannel channel) {
            super(channel);
            in = ByteBuffer.allocate((9 << 20) + 16);
        }

        @Override
        boolean step() throws Exception {
            if (!begun && in.position() >= 16) {
                begun = true;
                out = ByteBuffer.wrap(pattern(2, (int) in.getLong(8)));
            } else if (begun && ended && !answered) {
                answered = true;
                byte[] data = Arrays.copyOfRange(in.array(), 16, in.position());
                if (data.length != in.getLong(0)) {
                    throw new Exception(data.length + " bytes came in place of " + in.getLong(0));
                }
                out = ByteBuffer.wrap(sha256(data));
            }
            return answered && !out.hasRemaining();
        }
    }

    static class ClientEnd extends End {
        final byte[] data;
        final int downward;
        boolean shut;

        ClientEnd(SocketChannel channel, int upward, int downward) {
            super(channel);
            this.data = pattern(1, upward);
            this.downward = downward;
            in = ByteBuffer.allocate(downward + 64);
            out = ByteBuffer.allocate(upward + 16).putLong(upward).putLong(downward).put(data).flip();
        }

        @Override
        boolean step() throws Exception {
            if (!shut) {
                shut = true;
                channel.shutdownOutput();
            }
            if (!ended) {
                return false;
            }
            if (in.position() != downward + 32) {
                throw new Exception(in.position() + " bytes came in place of " + (downward + 32));
            }
            if (!Arrays.equals(Arrays.copyOf(in.array(), downward), pattern(2, downward))) {
                throw new Exception("the bytes from the server are not the ones it sent");
            }
            if (!Arrays.equals(Arrays.copyOfRange(in.array(), downward, downward + 32), sha256(data))) {
                throw new Exception("the bytes at the server are not the ones that were sent");
            }
            return true;
        }
    }

    static void loop(Selector selector, boolean server) throws Exception {
        while (server || !selector.keys().isEmpty()) {
            selector.select();
            for (Iterator<SelectionKey> it = selector.selectedKeys().iterator(); it.hasNext();) {
                SelectionKey key = it.next();
                it.remove();
                if (key.channel() instanceof ServerSocketChannel listener) {
                    SocketChannel channel = listener.accept();
                    if (channel != null) {
                        channel.configureBlocking(false);
                        channel.register(selector, SelectionKey.OP_READ, new ServerEnd(channel));
                    }
                } else if (key.isConnectable()) {
                    key.interestOps(SelectionKey.OP_READ | SelectionKey.OP_WRITE);
                    ((SocketChannel) key.channel()).finishConnect();
                } else {
                    ((End) key.attachment()).run(key);
                }
            }
            if (!server) {
                selector.selectNow(); // forgets cancelled keys
            }
        }
    }

    public static void main(String[] args) throws Exception {
        Selector selector = Selector.open();
        if (args[0].equals("server")) {
            ServerSocketChannel listener = ServerSocketChannel.open();
            listener.bind(new InetSocketAddress("0.0.0.0", Integer.parseInt(args[1])), 128);
            listener.configureBlocking(false);
            listener.register(selector, SelectionKey.OP_ACCEPT);
            System.out.println("listening");
            loop(selector, true);
        }
        for (int i = 3; i < args.length; i++) {
            String[] sizes = args[i].split(":");
            SocketChannel channel = SocketChannel.open();
            channel.configureBlocking(false);
            channel.connect(new InetSocketAddress(args[1], Integer.parseInt(args[2])));
            End end = new ClientEnd(channel, Integer.parseInt(sizes[0]), Integer.parseInt(sizes[1]));
            channel.register(selector, SelectionKey.OP_CONNECT, end);
            loop(selector, false);
        }
        System.out.println("ok " + (args.length - 3));
    }
}
